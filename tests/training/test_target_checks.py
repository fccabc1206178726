"""Targets that a loss does not take, in the user's words."""

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.errors import DataError
from finetune.training.target_checks import WidthError
from finetune.training.try_examples import try_examples

X = np.zeros((6, 4), "float32")
LABELS = np.arange(6) % 3


def problem(loss, y, outputs=3, compile_with=None):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs)])
    model.compile("sgd", compile_with or loss)
    with pytest.raises(DataError) as caught:
        try_examples(model, Examples(X, y, X, y))
    return str(caught.value)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()])
def test_one_hot_labels_under_a_sparse_loss(loss):
    assert problem(loss, np.eye(3)[LABELS]) == (
        "The loss `sparse_categorical_crossentropy` takes the number of the class of each row. The targets have 3 values "
        "a row, a target for each class. Take `categorical_crossentropy`, or number the classes."
    )


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "categorical_hinge", "kl_divergence"])
@pytest.mark.parametrize("y", [LABELS, LABELS[:, np.newaxis]])
def test_numbers_of_classes_under_a_loss_of_one_hot_labels(loss, y):
    assert problem(loss, y) == (
        f"The loss `{loss}` takes 3 values a row, a target for each class. The targets are a single number a row. Take "
        "`sparse_categorical_crossentropy`."
    )


def test_one_hot_labels_of_more_classes_than_outputs():
    assert problem("categorical_crossentropy", np.eye(5)[LABELS]) == (
        "The loss `categorical_crossentropy` takes a target for each class. The model gives 3 classes, and the targets "
        "have 5 values a row. Give the head as many classes."
    )


@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", "huber", "binary_crossentropy"])
@pytest.mark.parametrize(("y", "outputs", "values"), [(X[:, :2], 1, 2), (X[:, 0], 3, 1), (X[:, :1], 3, 1), (X, 3, 4)])
def test_targets_that_keras_would_repeat_to_fit_the_outputs(loss, y, outputs, values):
    assert problem(loss, y, outputs) == (
        f"The loss `{loss}` takes a target for each value of the output. The model gives {outputs} a row, and the "
        f"targets have {values}. Give the head as many values (`head: {{classes: auto}}`), or take other targets."
    )


@pytest.mark.parametrize("y", [X[:, 0], X[:, :1]])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_number_fits_an_output_with_and_without_an_axis(y, shape):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), keras.layers.Reshape(shape)])
    model.compile("sgd", "mse")
    try_examples(model, Examples(X, y, X, y))


def test_labels_outside_the_head_of_an_output_by_name():
    x = keras.Input((4,))
    model = keras.Model(x, [keras.layers.Dense(3, name="kind")(x), keras.layers.Dense(1, name="size")(x)])
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    y = {"kind": LABELS + 1, "size": X[:, 0]}
    with pytest.raises(DataError) as caught:
        try_examples(model, Examples(X, y, X, y))
    assert str(caught.value) == (
        "A network has an output for each class. The model gives 3 classes of output `kind`, numbered `0` to `2`, and "
        "`y_train` has `3`, too. These have no output. Number them from 0, set "
        "`head: {classes: auto}`, or take a network with more outputs."
    )


def test_classes_without_an_output_are_named():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(WidthError) as caught:
        try_examples(model, Examples(X, LABELS, X, LABELS, class_names=("cat", "cow", "dog")))
    assert str(caught.value) == (
        "A network has an output for each class. The model gives 2 classes, numbered `0` to `1`, and the data have 3: "
        "`cat`, `cow`, `dog`. `dog` has no output. Set `head: {classes: auto}`, or take a network with more outputs."
    )


def test_labels_that_are_no_numbers_of_classes():
    assert problem("sparse_categorical_crossentropy", LABELS - 1) == (
        "Labels must be the numbers of the classes, from 0. The model gives 3 classes, so they are `0` to `2`; `y_train` "
        "also holds `-1`. Number the labels from 0, or give the model's head more classes."
    )


@pytest.mark.parametrize("y", [LABELS, LABELS[:, np.newaxis], LABELS.astype("float32")])
def test_targets_that_keras_takes_pass(y):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    try_examples(model, Examples(X, y, X, y))
