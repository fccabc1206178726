"""Which targets each loss of Keras takes."""

import inspect

import keras
import pytest

from finetune.data.loss_families import UNKNOWN, activation_for, family_of


def test_every_loss_of_keras_has_a_family_under_each_of_its_names():
    every = {name for name, value in vars(keras.losses).items() if callable(value) and not name.startswith("_")}
    of_no_form = {"Loss", "get", "serialize", "deserialize", "CTC", "ctc"}  # `ctc` takes sequences of labels
    assert {name for name in every if family_of(name) == UNKNOWN} == of_no_form
    assert [family_of(name) for name in ("mse", "bce", "kld", "log_cosh", "crossentropy")] == [
        *("numbers", "binary", "one_hot", "numbers", "one_hot"),
    ]


def test_classes_and_functions_of_a_loss_are_of_the_same_family():
    for name, value in vars(keras.losses).items():
        if inspect.isclass(value):
            words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
            assert family_of(words) == family_of(name)


@pytest.mark.parametrize(
    ("loss", "outputs", "activation"),
    [
        ("sparse_categorical_crossentropy", 3, "softmax"),
        ("CategoricalFocalCrossentropy", 3, "softmax"),
        ("binary_crossentropy", 1, "sigmoid"),
        ("bce", 4, "sigmoid"),
        ("crossentropy", 1, "sigmoid"),
        ("mse", 1, "linear"),
        ("huber", 3, "linear"),
        ("hinge", 1, "linear"),
        ("categorical_hinge", 3, "linear"),
        ("poisson", 1, "softplus"),
        ("dice", 2, "softmax"),
    ],
)
def test_a_head_ends_in_what_its_loss_takes(loss, outputs, activation):
    assert activation_for(loss, outputs) == activation
