"""Every metric of Keras under every form of targets: the value on targets prepared by hand, or a refusal.

The metrics come from the namespace of Keras: a metric that a new Keras adds is tried, too.
"""

import inspect
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import metrics

from finetune.errors import DataError
from finetune.training.fitted_metrics import accuracy_of, fit_metric, notes_on, task_of, try_metric

RNG = np.random.default_rng(0)
ROWS = 40
# What the metrics that need arguments are made with.
ARGUMENTS = {
    "MeanIoU": {"num_classes": 3},
    "IoU": {"num_classes": 3, "target_class_ids": [1]},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [1]},
    "OneHotMeanIoU": {"num_classes": 3},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "F1Score": {"average": "macro", "threshold": 0.5},
    "FBetaScore": {"average": "macro", "threshold": 0.4},
    "TopKCategoricalAccuracy": {"k": 2},
    "SparseTopKCategoricalAccuracy": {"k": 2},
}
CLASSES = {name: value for name, value in vars(metrics).items() if inspect.isclass(value)}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


def make_tasks():
    """Returns for each task: targets and outputs as the model has them, the loss, and both as most metrics take them."""
    one, three, steps = normal(ROWS, 1), normal(ROWS, 3), normal(ROWS, 4, 3)
    flags = (one + normal(ROWS, 1) > 0).astype("float32")
    labels, labels_of_steps = (three + normal(ROWS, 3)).argmax(-1), (steps + normal(ROWS, 4, 3)).argmax(-1)
    eye = np.eye(3, dtype="float32")
    several = (three + normal(ROWS, 3) > 0).astype("float32")
    sparse, dense = "sparse_categorical_crossentropy", "categorical_crossentropy"
    classes, likely = eye[labels], softmax(three)
    return {
        "binary": (flags[:, 0].astype(int), sigmoid(one), "binary_crossentropy", flags, sigmoid(one)),
        "binary logits": (flags[:, 0].astype(int), one, "binary_crossentropy", flags, sigmoid(one)),
        "labels": (labels, likely, sparse, classes, likely),
        "labels in a column": (labels[:, None], likely, sparse, classes, likely),
        "labels and logits": (labels, three, sparse, classes, likely),
        "one-hot": (classes, likely, dense, classes, likely),
        "one-hot and logits": (classes, three, dense, classes, likely),
        "several labels": (several, sigmoid(three), "binary_crossentropy", several, sigmoid(three)),
        "labels of steps": (labels_of_steps, softmax(steps), sparse, eye[labels_of_steps], softmax(steps)),
        "quantities": (3 * flags[:, 0] - one[:, 0], 3 * one, "mse", 3 * flags - one, 3 * one),
    }


TASKS = make_tasks()


def fitted(name, task):
    y, outputs, loss, *_ = TASKS[task]
    form = task_of(y, outputs, loss=loss, logits="logits" in task)
    make = accuracy_of(form) if name == "Accuracy" else CLASSES[name]
    return fit_metric(name, make, ARGUMENTS.get(name, {}), form)


def by_hand(name, task):
    """Keras' metric on targets and outputs in the form that it takes."""
    raw, outputs, _, y, likely = TASKS[task]
    make = accuracy_of(task_of(raw, outputs, loss="", logits=False)) if name == "Accuracy" else CLASSES[name]
    numbers = {"sparse_y_true": False, "sparse_y_pred": False} if name in ("IoU", "MeanIoU") else {}
    metric = make(**ARGUMENTS.get(name, {}), **numbers)
    if make.__name__.startswith("Sparse"):
        y = y.argmax(-1)
    if name in ("F1Score", "FBetaScore", "R2Score"):
        y, likely = y.reshape(-1, y.shape[-1]), likely.reshape(-1, y.shape[-1])
    metric.update_state(y, outputs if "Hinge" in name else likely)
    return np.asarray(metric.result())


def refusal_or_metric(name, task):
    try:
        return fitted(name, task)
    except DataError as error:
        return str(error)


# With softmax, Keras' binary cross-entropy goes back to the logits and takes their sigmoid, and the other way around.
OTHER_CROSSENTROPY = {("BinaryCrossentropy", "one-hot and logits"), ("BinaryCrossentropy", "labels and logits")}


@pytest.mark.sample(5)
@pytest.mark.parametrize("task", TASKS)
def test_every_metric_is_right_or_refused_with_advice(task):
    y, outputs, *_ = TASKS[task]
    computed = 0
    for name in CLASSES:
        metric = refusal_or_metric(name, task)
        if isinstance(metric, str):
            assert "Use `" in metric
            continue
        for rows in (slice(0, 25), slice(25, ROWS)):  # two batches of different sizes
            metric.update_state(tf.constant(y[rows]), tf.constant(outputs[rows]))
        if (name, task) not in OTHER_CROSSENTROPY:
            np.testing.assert_allclose(metric.result(), by_hand(name, task), atol=1e-5, err_msg=f"{name}, {task}")
        computed += 1
    assert computed >= (12 if task == "quantities" else 26)


@pytest.mark.parametrize(
    ("name", "task", "fits"),
    [
        ("SparseCategoricalAccuracy", "binary", "binary_accuracy"),
        ("categorical_crossentropy", "binary", "binary_crossentropy"),
        ("sparse_categorical_accuracy", "one-hot", "categorical_accuracy"),
        ("BinaryAccuracy", "labels", "sparse_categorical_accuracy"),
        ("MeanIoU", "binary", "binary_io_u"),
        ("Mean", "labels", "accuracy"),
        ("Accuracy", "quantities", "mean_absolute_error"),
        ("PearsonCorrelation", "quantities", "r2_score"),
    ],
)
def test_a_metric_whose_value_would_mean_nothing_is_refused_with_the_metric_that_fits(name, task, fits):
    y, outputs, loss, *_ = TASKS[task]
    form = task_of(y, outputs, loss=loss, logits=False)
    make = accuracy_of(form) if name == "Accuracy" else CLASSES.get(name) or keras.metrics.get(name)
    with pytest.raises(DataError, match=f"`{fits}`"):
        fit_metric(name, make, ARGUMENTS.get(name, {}), form)


def test_f1_of_a_single_output_needs_a_threshold():
    form = task_of(*TASKS["binary"][:2], loss="binary_crossentropy", logits=False)
    with pytest.raises(DataError, match=re.escape("Use `{name: f1_score, threshold: 0.5}`")):
        fit_metric("f1_score", metrics.F1Score, {}, form)
    metric = fit_metric("f1_score", metrics.F1Score, {"threshold": 0.5}, form)
    metric.update_state(*TASKS["binary"][:2])
    assert metric.result().shape == ()


def test_weights_of_rows_count_for_all_steps_of_a_row():
    y, outputs, _, classes, likely = TASKS["labels of steps"]
    weights = RNG.uniform(size=ROWS).astype("float32")
    metric = fitted("F1Score", "labels of steps")
    metric.update_state(y, outputs, sample_weight=weights)
    plain = metrics.F1Score(average="macro", threshold=0.5)
    plain.update_state(classes.reshape(-1, 3), likely.reshape(-1, 3), sample_weight=np.repeat(weights, 4))
    np.testing.assert_allclose(metric.result(), plain.result(), rtol=1e-6)


def test_a_metric_by_name_of_a_function_is_fitted_too():
    y, outputs, *_ = TASKS["labels"]
    form = task_of(y, outputs, loss="sparse_categorical_crossentropy", logits=False)
    metric = fit_metric("mse", keras.metrics.get("mse"), {}, form)
    metric.update_state(y, outputs)
    assert metric.name == "mse"
    np.testing.assert_allclose(metric.result(), np.mean((np.eye(3)[y] - outputs) ** 2), rtol=1e-5)


@pytest.mark.sample(5)
@pytest.mark.parametrize("task", TASKS)
def test_every_fitted_metric_comes_back_from_a_file_with_the_same_value(task):
    y, outputs, *_ = TASKS[task]
    for name in CLASSES:
        metric = refusal_or_metric(name, task)
        if isinstance(metric, str):
            continue
        metric.name = f"{metric.name}_renamed"
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(metric)))
        again = keras.saving.deserialize_keras_object(saved)
        for each in (metric, again):
            each.update_state(tf.constant(y), tf.constant(outputs))
        assert again.name == metric.name
        np.testing.assert_array_equal(again.result(), metric.result(), err_msg=f"{name}, {task}")


def test_a_compiled_model_with_a_fitted_metric_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    y, outputs, loss, *_ = TASKS["labels and logits"]
    form = task_of(y, outputs, loss=loss, logits=True)
    named = {"mse": keras.metrics.get("mse"), "auc": metrics.AUC, "f1": metrics.F1Score}
    arguments = {"f1": {"average": "macro"}}
    keras.utils.clear_session()  # the names of Keras' counters
    fitted_metrics = [fit_metric(name, make, arguments.get(name, {}), form) for name, make in named.items()]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=fitted_metrics)
    expected = model.evaluate(outputs, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(outputs, y, verbose=0, return_dict=True) == expected
    assert set(expected) == {"loss", "mse", "auc", "f1_score"}


def test_a_trial_leaves_no_trace_and_names_what_does_not_fit():
    metric = fitted("Precision", "labels")
    try_metric(metric, TASKS["labels"][0][:2], TASKS["labels"][1][:2])
    assert all(not np.any(variable) for variable in metric.variables)
    with pytest.raises(DataError, match=r"does not fit the targets and the outputs of the network: .+Choose a metric"):
        try_metric(metrics.R2Score(), np.zeros(2), np.zeros((2, 3)))


def test_accuracy_of_several_labels_comes_with_a_note():
    y, outputs, loss, *_ = TASKS["several labels"]
    form = task_of(y, outputs, loss=loss, logits=False)
    assert "use `binary_accuracy`" in notes_on("accuracy", {}, form, loss)
    assert not notes_on("binary_accuracy", {}, form, loss)


@pytest.mark.parametrize(("y", "outputs"), [({"a": 1}, np.zeros((2, 3))), (np.zeros(2), [np.zeros((2, 3))] * 2)])
def test_several_outputs_have_no_single_task(y, outputs):
    assert task_of(y, outputs, loss="mse", logits=False) is None


@pytest.mark.parametrize("targets", ["arrays", "dataset"])
def test_a_metric_of_a_single_number_is_right_for_arrays_to_which_keras_adds_an_axis_and_for_datasets(targets):
    x, y = np.arange(6, dtype="float32")[:, np.newaxis], np.array([1.0, 0, 5, 2, 2, 9], "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    task = task_of(y, model(x), loss="mse", logits=False)
    model.compile(loss="mse", metrics=[fit_metric("mae", keras.losses.mean_absolute_error, {}, task)])
    data = (x, y) if targets == "arrays" else (tf.data.Dataset.from_tensor_slices((x, y)).batch(4),)
    assert model.evaluate(*data, verbose=0)[1] == pytest.approx(np.abs(x[:, 0] - y).mean())
