"""Code that reads batches itself reads those of `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import DataError
from finetune.training.fit_data import fit_batches, without_optionals
from finetune.training.lr_range.api import lr_range_test

X, Y = np.arange(10.0).reshape(5, 2), np.array([0, 1, 0, 1, 1])


def dense(part):
    return part.to_tensor().numpy() if isinstance(part, tf.RaggedTensor) else np.asarray(part)


class Recorder(keras.Model):
    """Keeps the batches that `fit` trains on."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def train_step(self, data):
        self.batches.append(tf.nest.map_structure(dense, without_optionals(data)))
        return {"loss": 0.0}


class Pairs(keras.utils.PyDataset):
    """Two batches with targets."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


def pairs():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


@pytest.mark.parametrize(
    ("x", "more"),
    [
        (lambda: X, {"y": Y, "batch_size": 2}),
        (lambda: X, {"y": Y, "sample_weight": Y + 1.0}),
        (lambda: X, {"y": Y, "class_weight": {0: 1.0, 1: 5.0}}),
        (lambda: [X, X[:, :1]], {"y": {"a": Y, "b": Y}, "sample_weight": {"a": Y, "b": Y * 2}}),
        (lambda: {"p": tf.constant(X), "q": X}, {}),
        (pairs, {}),
        (pairs, {"class_weight": {0: 1.0, 1: 5.0}}),
        (Pairs, {"class_weight": {1: 3.0}}),
        (lambda: ((X[n : n + 1], Y[n : n + 1]) for n in range(3)), {}),
        (lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]), {"y": np.array([0, 1])}),
    ],
)
@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
def test_the_batches_are_those_that_fit_trains_on(x, more):
    model = Recorder()
    model.compile(run_eagerly=True)
    model.fit(x(), shuffle=False, verbose=0, **more)
    read = [keras.tree.flatten(without_optionals(batch)) for batch in fit_batches(x(), **more)]
    trained = [keras.tree.flatten(batch) for batch in model.batches]
    assert len(read) == len(trained) > 0
    for batch, expected in zip(read, trained, strict=True):
        for part, other in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(dense(part), other)


def test_a_dataset_is_passed_on_and_not_copied():
    dataset = pairs()
    assert fit_batches(dataset) is dataset


def test_what_fit_would_not_take_is_an_error():
    with pytest.raises(DataError, match=r"^Data are what `model.fit` takes\. ValueError: .*`y` should not be passed"):
        fit_batches(pairs(), Y)
    with pytest.raises(DataError, match=r"Pass arrays with `y`, or a `tf.data.Dataset`"):
        fit_batches("rows.csv")


def test_parts_that_are_missing_become_none():
    assert without_optionals((1, tf.experimental.Optional.empty(None))) == (1, None)


TEXTS, LABELS = ["the good film", "a bad film", "Good fox", "bad"] * 2, [1, 0, 1, 0] * 2
RAW = {
    "array": lambda: (np.array(TEXTS), np.array(LABELS)),
    "object array": lambda: (np.array(TEXTS, object), np.array(LABELS)),
    "list": lambda: (TEXTS, LABELS),
    "tensor": lambda: (tf.constant(TEXTS), tf.constant(LABELS)),
    "dataset": lambda: (tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4),),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.grid if kind in ("array", "list") else ()) for kind in RAW]
)
def test_raw_strings_become_the_batches_that_the_fit_of_a_kerashub_task_trains_on(kind, text_classifier):
    batches = list(fit_batches(*RAW[kind](), batch_size=None if kind == "dataset" else 4, model=text_classifier("sgd")))
    expected = text_classifier("sgd").preprocessor(TEXTS[:4])
    assert len(batches) == 2
    for inputs, targets in batches:
        assert set(inputs) == {"token_ids", "padding_mask", "segment_ids"}
        np.testing.assert_array_equal(inputs["token_ids"], expected["token_ids"])
        np.testing.assert_array_equal(targets, LABELS[:4])


def test_weights_of_rows_and_classes_are_those_of_raw_rows(text_classifier):
    model, weights = text_classifier("sgd"), np.arange(8, dtype="float32")
    ((_, _, read),) = fit_batches(TEXTS, LABELS, sample_weight=weights, model=model)
    np.testing.assert_array_equal(read, weights)
    ((_, _, read),) = fit_batches(TEXTS, LABELS, class_weight={0: 1.0, 1: 3.0}, model=model)
    np.testing.assert_array_equal(read, [3, 1, 3, 1, 3, 1, 3, 1])


def test_a_task_without_a_preprocessor_gets_its_inputs_as_they_are(text_classifier):
    model = text_classifier("sgd")
    inputs, model.preprocessor = model.preprocessor(TEXTS), None
    ((read, _),) = fit_batches(inputs, np.array(LABELS), model=model)
    np.testing.assert_array_equal(read["token_ids"], inputs["token_ids"])


def test_a_generator_of_raw_rows_is_refused_since_the_fit_of_the_task_takes_none(text_classifier):
    with pytest.raises(DataError, match="`BertTextClassifier` preprocesses arrays and datasets, and no `generator`"):
        fit_batches((pair for pair in [(TEXTS, LABELS)]), model=text_classifier("sgd"))


def test_an_lr_range_test_of_raw_strings_leaves_no_trace(text_classifier):
    model = text_classifier(keras.optimizers.Adam(1e-3))
    before = model.get_weights()
    result = lr_range_test(model, np.array(TEXTS), np.array(LABELS), batch_size=4, steps=20)
    assert np.isfinite(result.curves["all groups"]["losses"][0])
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
