import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.data.examples import Examples
from finetune.errors import DataError, GroupError, TrainingError
from finetune.training.try_examples import explained, try_examples, try_model


def compiled(model, loss="sparse_categorical_crossentropy", metrics=("accuracy",)):
    model.compile("sgd", loss=loss, metrics=list(metrics), run_eagerly=True)
    return model


def examples(rows, change_x=lambda x: x, change_y=lambda y: y, **more):
    x, y = change_x(rows[0]), change_y(rows[1])
    return Examples(x[:60], y[:60], x[60:], y[60:], **more)


def problem(model, data):
    with pytest.raises(DataError) as error:
        try_examples(model, data)
    return str(error.value)


def test_examples_that_fit_pass_and_leave_the_model_as_it_was(tiny, rows):
    model = compiled(tiny())
    before = [np.array(weight) for weight in model.get_weights()]
    try_examples(model, examples(rows))
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.iterations) == 0
    assert [float(variable) for variable in model.metrics_variables] == [0.0] * len(model.metrics_variables)


def test_a_trial_does_not_change_what_training_gives(tiny, rows):
    losses = []
    for tried in (False, True):
        keras.utils.set_random_seed(1)
        model = compiled(keras.Sequential([*tiny().layers[:3], layers.Dropout(0.5), layers.Dense(3, "softmax")]))
        model.build((None, 6))
        if tried:
            try_examples(model, examples(rows))
        losses.append(model.fit(*rows, epochs=1, verbose=0).history["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda x: x[:, :5], "`5` values"),
        (lambda x: x[:, 0], "a single value"),
        (lambda x: x[..., None], "`6x1` values"),
    ],
)
def test_inputs_of_another_shape_are_named_with_the_one_that_fits(tiny, rows, change, shown):
    assert problem(compiled(tiny()), examples(rows, change)) == (
        f"Examples must have the shape that the model takes. `tiny` takes `6` values per row; the data have {shown}. "
        "Change the data or the model."
    )


def test_an_open_axis_takes_every_length(rows):
    parts = [keras.Input((None, 6)), layers.GlobalAveragePooling1D(), layers.Dense(3, "softmax")]
    model = compiled(keras.Sequential(parts))
    try_examples(model, examples(rows, lambda x: np.repeat(x[:, None], 4, axis=1)))
    assert "takes `?x6` values" in problem(model, examples(rows))


@pytest.mark.parametrize(("part", "rows_changed"), [("y_train", slice(0, 60)), ("y_test", slice(60, 90))])
def test_labels_that_count_from_one_are_found_in_every_part(tiny, rows, part, rows_changed):
    labels = rows[1].copy()
    labels[rows_changed] += 1
    assert problem(compiled(tiny()), examples((rows[0], labels))) == (
        f"A network has an output for each class. The model gives 3 classes, numbered `0` to `2`, and `{part}` has `3`, too. "
        "These have no output. Number them from 0, set `head: {classes: auto}`, or take a network with more outputs."
    )


@pytest.mark.parametrize("label", [-1, 0.5])
def test_negative_and_broken_labels_are_named(tiny, rows, label):
    labels = np.where(rows[1] == 1, label, rows[1])
    assert f"also holds `{float(label) if label == 0.5 else label}`" in problem(
        compiled(tiny()), examples((rows[0], labels))
    )


def test_labels_of_validation_rows_are_checked_too(tiny, rows):
    data = examples(rows, x_validation=rows[0][:5], y_validation=np.full(5, 7))
    assert "`y_validation` has `7`, too" in problem(compiled(tiny()), data)


@pytest.mark.parametrize("loss", ["object", "function"])
def test_a_sparse_loss_is_known_as_object_and_as_function(tiny, rows, loss):
    made = {
        "object": keras.losses.SparseCategoricalCrossentropy(),
        "function": keras.losses.sparse_categorical_crossentropy,
    }[loss]
    assert "has `3`, too" in problem(compiled(tiny(), made), examples(rows, change_y=lambda y: y + 1))


def test_a_class_that_the_loss_ignores_is_no_wrong_label(tiny, rows):
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    labels = np.where(rows[1] == 1, 255, rows[1])
    try_examples(compiled(tiny(), loss, metrics=()), examples((rows[0], labels)))  # raises nothing
    assert "has `255`, too" in problem(compiled(tiny(), metrics=()), examples((rows[0], labels)))


def test_a_loss_that_does_not_fit_the_targets_is_reported_in_one_line_with_both_shapes(tiny, rows):
    def of_seven(y, outputs):
        return keras.ops.mean(keras.ops.reshape(y, (1, 1, 7)) - outputs)

    message = problem(compiled(tiny(), of_seven, metrics=()), examples(rows))
    assert message.startswith("Examples must fit the model and its loss. ")
    assert "the model gives `3` values. Check that `loss` fits the targets." in message
    assert "\n" not in message


def test_a_metric_that_does_not_fit_is_reported_without_blaming_the_loss(tiny, rows):
    metric = keras.metrics.F1Score()  # takes one-hot targets
    message = problem(compiled(tiny(), metrics=[metric]), examples(rows))
    assert message.startswith("Examples must fit the metrics. ")
    assert message.endswith("Choose metrics for targets and outputs of this form.")
    assert "loss" not in message


@pytest.mark.parametrize("label", [2, -1])
def test_labels_outside_of_0_and_1_are_named_under_a_binary_loss(rows, label):
    model = compiled(keras.Sequential([keras.Input((6,)), layers.Dense(1, "sigmoid")]), "binary_crossentropy")
    assert problem(model, examples(rows, change_y=lambda y: np.where(y == 1, label, 0))) == (
        "The labels of `binary_crossentropy` must be from 0 to 1. Outside of that its value falls without end; "
        f"`y_train` also holds `{label}`. Number the labels 0 and 1, or take the loss of a regression, such as `mse`."
    )
    try_examples(model, examples(rows, change_y=lambda y: np.where(y == 1, 0.9, 0.1)))  # smoothed: raises nothing


def test_a_trial_has_another_number_of_rows_than_the_network_has_outputs(rows):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, "softmax")])
    assert len(try_model(model, examples(rows)).x) == 3  # with 2 rows, targets (2,) would be spread over outputs (2, 2)


def test_a_subclassed_model_is_tried_by_calling_it(rows):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(3, "softmax")

        def call(self, x):
            return self.dense(x)

    model = compiled(Own())
    model(rows[0][:1])
    try_examples(model, examples(rows))
    message = problem(model, examples(rows, lambda x: x[:, :5]))
    assert "expected axis -1 of input shape to have value 6" in message
    assert "\n" not in message


def raised(error, kind=TrainingError):
    with pytest.raises(kind) as caught, explained(TrainingError, "The rule.", "What to do."):
        raise error
    return str(caught.value)


def test_an_error_is_explained_by_rule_reason_and_advice():
    assert raised(ValueError("too wide.")) == "The rule. ValueError: too wide. What to do."


def test_our_own_errors_pass_as_they_are():
    assert raised(GroupError("ours"), GroupError) == "ours"


def test_what_tensorflow_says_over_a_page_becomes_one_line(rows):
    @tf.function
    def step(y):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.zeros((1, 3)))

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        step(tf.constant([3]))
    assert str(caught.value).count("\n") > 3
    message = raised(caught.value)
    assert "Received a label value of 3 which is outside the valid range of [0, 3)" in message
    assert "\n" not in message
    assert "__inference" not in message


def test_complex_numbers_for_real_inputs_are_refused(tiny, rows):
    x, y = rows
    model = tiny()
    with pytest.raises(DataError, match="takes real numbers; the data have `complex64`"):
        try_model(model, Examples(x.astype("complex64"), y, x.astype("complex64"), y))


def test_more_tokens_than_positions_are_said_with_both_numbers():
    tokens = keras.Input((None,), dtype="int32")
    places = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = keras.layers.Embedding(7, 4)(tokens) + keras.layers.Embedding(12, 4)(places)
    model = keras.Model(tokens, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x)), name="bert")
    model.compile("sgd", "mse")
    rows, y = np.ones((6, 15), "int32"), np.zeros((6, 1), "float32")
    assert problem(model, Examples(rows, y, rows, y)) == (
        "A row has at most as many tokens as the network has positions. `bert` takes 12 tokens, and the rows have 15. Set "
        "`data.tokenizer.length: 12`, or cut the rows."
    )
    try_examples(model, Examples(rows[:, :12], y, rows[:, :12], y))


def test_text_in_place_of_numbers_is_refused_with_what_reads_it(tiny):
    paths = np.array([f"photos/{n}.jpg" for n in range(6)])
    message = problem(
        compiled(keras.Sequential([keras.Input(()), keras.layers.Reshape((1,))]), "mse", metrics=()),
        Examples(paths, X_Y, paths, X_Y),
    )
    assert "The inputs are text, such as `photos/0.jpg`, `photos/1.jpg`." in message


X_Y = np.zeros((6, 1), "float32")
