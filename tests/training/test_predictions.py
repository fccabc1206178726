"""Predictions of test rows, and the form in which they are compared with targets."""

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.rows import rows_of
from finetune.training import predictions as module
from finetune.training.predictions import predict_test_rows, rows_of_outputs, threshold_of

X = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.7], [-3.0, 1.0, 1.0]], "float32")


def identity(loss, width=3):
    model = keras.Sequential([keras.Input((width,)), keras.layers.Activation("linear")])
    model.compile("sgd", loss)
    return model


def output(loss, y, x=X, **about):
    model, examples = identity(loss, x.shape[1]), Examples(x, y, x, y, **about)
    return rows_of_outputs(model, examples, predict_test_rows(model, examples))


@pytest.mark.parametrize("one_hot", [False, True])
def test_classes_have_probabilities_also_where_the_network_gives_logits(one_hot):
    kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    y = np.array([0, 2, 1])
    rows = output(kind(from_logits=True), np.eye(3)[y] if one_hot else y, class_names=("a", "b", "c"))[""]
    assert (rows.kind, rows.names, rows.targets.tolist()) == ("classes", ("a", "b", "c"), [0, 2, 1])
    assert rows.scores == pytest.approx(np.exp(X) / np.exp(X).sum(1, keepdims=True), rel=1e-5)


def test_a_single_output_of_a_binary_loss_is_two_classes():
    x = np.array([[0.9], [0.2]], "float32")
    rows = output("binary_crossentropy", np.array([1.0, 1.0], "float32"), x, class_names=("no", "yes"))[""]
    assert (rows.names, rows.targets.tolist()) == (("no", "yes"), [1, 1])
    assert rows.scores == pytest.approx(np.array([[0.1, 0.9], [0.8, 0.2]]), rel=1e-5)


def test_several_outputs_of_a_binary_loss_are_labels():
    rows = output(keras.losses.BinaryCrossentropy(from_logits=True), (X > 0).astype("float32"))[""]
    assert rows.kind == "labels"
    assert ((rows.scores > 0.5) == rows.targets).all()
    assert threshold_of(keras.losses.BinaryCrossentropy(from_logits=True)) == 0


def test_a_hinge_loss_has_scores_that_are_no_probabilities():
    rows = output("categorical_hinge", np.eye(3, dtype="float32"))[""]
    assert not rows.are_probabilities


def test_numbers_are_named_after_their_columns():
    source = {"target": {"columns": ["a", "b", "c"]}}
    assert output("mse", X, source=source)[""].names == ("a", "b", "c")
    assert output("mae", X)[""].names == ("0", "1", "2")


def test_targets_of_another_form_and_losses_that_are_not_known_are_left_out():
    assert output("sparse_categorical_crossentropy", np.array([0, 1, 3])) == {}
    assert output("mse", X[:, :1]) == {}
    model = identity(lambda y, outputs: keras.ops.mean(outputs, axis=-1))
    examples = Examples(X, X, X, X)
    assert rows_of_outputs(model, examples, predict_test_rows(model, examples)) == {}


def test_each_output_is_read_by_its_name_and_targets_are_read_where_they_are_not_in_memory():
    x = keras.Input((3,))
    model = keras.Model(x, [keras.layers.Activation("softmax", name="kind")(x), keras.layers.Dense(1, name="size")(x)])
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    y = rows_of({"kind": np.array([0, 1, 2]), "size": np.zeros(3, "float32")})
    examples = Examples(X, y, X, y)
    rows = rows_of_outputs(model, examples, predict_test_rows(model, examples))
    assert {name: of.kind for name, of in rows.items()} == {"kind": "classes", "size": "numbers"}
    assert rows["kind"].targets.tolist() == [0, 1, 2]


def test_of_outputs_that_are_too_large_evenly_spaced_rows_are_predicted(monkeypatch):
    monkeypatch.setattr(module, "_MOST_VALUES", 6)
    x = np.arange(30, dtype="float32").reshape(10, 3)
    examples = Examples(x, x, x, x)
    of = predict_test_rows(identity("mse"), examples)
    assert (of.rows.tolist(), of.is_all) == ([0, 9], False)
    assert of.outputs.tolist() == x[[0, 9]].tolist() == of.targets.tolist()
