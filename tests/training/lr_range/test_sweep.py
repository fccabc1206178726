"""The LR range test measures what a hand-written sweep measures, and leaves no trace."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from finetune.errors import GroupError, TrainingError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import exponential_decay
from finetune.training.lr_range.sweep import sweep_rates
from finetune.training.snapshot import no_trace

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
STEPS = 12


def batches(rows: int = 64) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).batch(8).repeat()


def compiled(body=None, head=None, *, dropout: float = 0.0, **settings) -> keras.Model:
    keras.utils.set_random_seed(3)
    body_layer, head_layer = keras.layers.Dense(8, name="body"), keras.layers.Dense(2, name="head")
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((6,)), body_layer, norm, keras.layers.Dropout(dropout), head_layer])
    optimizer = GroupedOptimizer(
        {
            "body": (body or keras.optimizers.SGD(1e-3, momentum=0.9), [body_layer, norm]),
            "head": (head or keras.optimizers.Adam(1e-2), head_layer),
        },
        **settings,
    )
    model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_training_after_the_test_is_bit_identical_to_training_without_it():
    histories = []
    for tested in (False, True):
        model = compiled(keras.optimizers.SGD(exponential_decay(1e-3, 5, 0.5, staircase=True)), dropout=0.3)
        model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
        before = state(model)
        if tested:
            sweep_rates(model, batches(), steps=STEPS, repeats=2)
            assert same(before, state(model))
        histories.append(model.fit(X, Y, batch_size=16, epochs=2, verbose=0).history)
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back_after_an_error_and_after_ctrl_c(stop):
    model = compiled()
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0)
    before, rates, drawn = state(model), model.optimizer.learning_rates, (random.getstate(), np.random.get_state()[1])

    def interrupt(done: int, total: int) -> None:
        random.random()
        raise stop

    with pytest.raises(stop):
        sweep_rates(model, batches(), steps=STEPS, on_step=interrupt)
    assert same(before, state(model))
    assert model.optimizer.learning_rates == rates
    assert random.getstate() == drawn[0]
    assert np.array_equal(np.random.get_state()[1], drawn[1])
    model.optimizer.learning_rate = 0.1
    assert model.optimizer.learning_rates["body"] == pytest.approx(0.01)


def test_the_losses_are_those_of_single_batches_trained_by_hand():
    by_hand, model = compiled(), compiled()
    losses = []
    for rate, (x, y) in zip(np.geomspace(1e-4, 1e-1, STEPS), batches(), strict=False):
        by_hand.optimizer.learning_rate = rate
        by_hand.reset_metrics()
        losses.append(by_hand.train_on_batch(x, y)[0])
    [[sweep]] = sweep_rates(model, batches(), start=1e-4, end=1e-1, steps=STEPS)
    np.testing.assert_allclose(sweep.losses, losses, rtol=2e-5)
    np.testing.assert_allclose(sweep.x, np.geomspace(1e-4, 1e-1, STEPS), rtol=1e-6)


def test_one_multiplier_keeps_the_ratios_of_all_groups():
    [[sweep]] = sweep_rates(compiled(), batches(), start=1e-5, end=1e-2, steps=STEPS)
    assert sweep.groups == ("body", "head")
    np.testing.assert_allclose(sweep.rates[:, 1] / sweep.rates[:, 0], 10, rtol=1e-5)


@pytest.mark.parametrize(("others", "rate"), [("constant", 1e-2), ("frozen", 0.0)])
def test_a_group_is_swept_alone_while_the_others_are_frozen_or_keep_their_rates(others, rate):
    [[sweep]] = sweep_rates(compiled(), batches(), start=1e-5, end=1e-2, steps=STEPS, groups=["body"], others=others)
    assert sweep.swept == 0
    np.testing.assert_allclose(sweep.rates[:, 1], rate, rtol=1e-6)
    np.testing.assert_allclose(sweep.rates[[0, -1], 0], [1e-5, 1e-2], rtol=1e-6)


def test_a_diverging_sweep_stops_early_and_says_so():
    model = compiled(keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0))
    [[sweep]] = sweep_rates(model, batches(), start=1e-2, end=1e6, steps=60)
    assert sweep.diverged
    assert len(sweep.losses) == len(sweep.rates) < 60 == sweep.planned_steps


@pytest.mark.slow
def test_each_step_trains_as_many_batches_as_are_accumulated():
    model = compiled(gradient_accumulation_steps=2)
    counted = []
    [[sweep]] = sweep_rates(
        model, batches().map(lambda x, y: (x, y)), steps=STEPS, on_step=lambda *n: counted.append(n)
    )
    assert len(sweep.losses) == STEPS
    assert counted[-1] == (STEPS, STEPS)
    with pytest.raises(TrainingError, match="The batches ran out"):
        sweep_rates(model, batches().take(STEPS), steps=STEPS)


@pytest.mark.slow
def test_a_plain_optimizer_and_mixed_precision_are_swept_too():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="head")])
        model.compile(
            keras.optimizers.Adam(name="adam"), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        [[sweep]] = sweep_rates(model, batches(), steps=STEPS)
    finally:
        keras.config.set_dtype_policy("float32")
    assert sweep.groups == ("adam",)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    assert int(model.optimizer.iterations) == 0


def test_an_unknown_group_and_an_impossible_range_are_errors():
    with pytest.raises(
        GroupError, match=r"those that are trained: `body`, `head`\. Received `hed`\. Did you mean `head`\?"
    ):
        sweep_rates(compiled(), batches(), groups=["hed"])
    with pytest.raises(GroupError, match=r"Received others='rest'"):
        sweep_rates(compiled(), batches(), groups=["body"], others="rest")
    with pytest.raises(GroupError, match=r"raises the rate from `start` > 0 to a higher `end`.*start=1\.0, end=0\.1"):
        sweep_rates(compiled(), batches(), start=1.0, end=0.1)


def test_the_copy_takes_as_much_memory_as_the_variables_it_keeps():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    with no_trace(model) as size:
        assert size == sum(value.nbytes for value in state(model))


def test_it_works_where_nobody_has_ever_set_a_seed(monkeypatch):
    monkeypatch.delattr(context.context(), "_rng", raising=False)
    model = compiled()
    monkeypatch.delattr(context.context(), "_rng", raising=False)
    model.optimizer.build(model.trainable_variables)
    with no_trace(model) as size:
        assert size > 0


@pytest.mark.slow
def test_a_second_test_compiles_nothing_and_one_after_a_new_compile_is_of_the_new_model():
    model = compiled()

    def losses():
        [[sweep]] = sweep_rates(model, batches(), start=1e-5, end=1e-2, steps=STEPS)
        return sweep.losses

    first, kept = losses(), vars(model)["_finetune_sweeper"]
    np.testing.assert_array_equal(first, losses())
    assert vars(model)["_finetune_sweeper"] is kept
    assert kept.run.experimental_get_tracing_count() == 1
    assert not any("swept" in variable.name for variable in model.variables)
    model.compile(model.optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=False))
    assert not np.array_equal(first, losses())


@pytest.mark.slow
def test_a_model_that_was_tested_is_saved_cloned_and_copied_as_before(tmp_path):
    model = compiled()
    sweep_rates(model, batches(), start=1e-5, end=1e-2, steps=STEPS)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert len(keras.models.clone_model(model).weights) == len(model.weights)


# -- What the step touches besides the model's own variables ----------------------------------------------------------

steps_of_all = tf.Variable(0.0, name="steps_of_all")


@keras.saving.register_keras_serializable("finetune-tests")
class Counting(keras.layers.Layer):
    """Counts its calls in a `tf.Variable` that Keras does not track."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


class TwoOptimizers(keras.Model):
    """Updates every weight with a second optimizer as well."""

    second = None

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.second.apply(gradients, self.trainable_variables)
        steps_of_all.assign_add(1.0)
        return {"loss": loss}


def with_two_optimizers():
    inputs = keras.Input((6,))
    model = TwoOptimizers(inputs, keras.layers.Dense(2, name="head")(Counting(name="counting")(inputs)))
    model.second = keras.optimizers.Adam(0.1)
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_slots_of_a_second_optimizer_and_variables_that_keras_does_not_track_are_restored():
    model = with_two_optimizers()
    model.fit(batches(), steps_per_epoch=2, shuffle=False, verbose=0)
    counting = model.get_layer("counting").calls

    def everything():
        second = [np.array(variable.numpy()) for variable in model.second.variables]
        return [*state(model), *second, counting.numpy(), steps_of_all.numpy()]

    before = everything()
    assert counting.numpy() > 0
    [[sweep]] = sweep_rates(model, batches(), steps=STEPS)
    assert len(sweep.losses) == STEPS
    assert same(before, everything())


def test_slots_that_the_first_step_makes_are_as_new_afterwards():
    model = with_two_optimizers()
    sweep_rates(model, batches(), steps=STEPS)
    assert int(model.second.iterations) == 0
    assert all(not np.any(slot.numpy()) for slot in model.second.variables[2:])


def test_the_dataset_is_opened_once_and_no_batch_is_read_for_anything_but_a_step():
    opened, read = [], []

    def rows():
        opened.append(1)
        for n in range(0, 64, 8):
            read.append(n)
            yield X[n : n + 8], Y[n : n + 8]

    signature = (tf.TensorSpec((None, 6), tf.float32), tf.TensorSpec((None,), tf.int64))
    data = tf.data.Dataset.from_generator(rows, output_signature=signature)
    sweep_rates(compiled(), data, steps=8)
    assert len(opened) == 1
    assert read == [*range(0, 64, 8)]


def test_a_step_that_returns_no_loss_is_an_error_that_names_what_it_returns():
    class Named(TwoOptimizers):
        def train_step(self, data):
            return {"generator_loss": super().train_step(data)["loss"]}

    inputs = keras.Input((6,))
    model = Named(inputs, keras.layers.Dense(2)(inputs))
    model.second = keras.optimizers.Adam(0.1)
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(TrainingError) as error:
        sweep_rates(model, batches(), steps=STEPS)
    assert str(error.value) == (
        "An LR range test reads the `loss` that `train_step` returns in its dictionary. `Named.train_step` returns "
        "`generator_loss`. Return the loss to be judged as `loss`, too."
    )


def test_data_that_do_not_fit_the_model_are_an_error_in_one_line():
    with pytest.raises(TrainingError) as error:
        sweep_rates(compiled(), tf.data.Dataset.from_tensors((X[:8, :5], Y[:8])).repeat(), steps=STEPS)
    said = str(error.value)
    assert said.startswith("An LR range test makes the training steps of `sequential")
    assert "received input with shape (8, 5)" in said
    assert said.endswith("The test compiles them; check that `model.fit` takes the same data.")
    assert len(said.splitlines()) == 1
