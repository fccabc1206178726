import keras
import numpy as np
import pytest
from keras import layers, losses, ops

from finetune.training.loss_advice import advice_on_loss, takes_logits

X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


def advice(loss, *last):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), *last])
    model.compile("sgd", loss)
    return list(advice_on_loss(model, X))


class HasNoConfig(losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(y_pred)


@pytest.mark.parametrize(
    ("loss", "logits"),
    [
        ("sparse_categorical_crossentropy", False),
        ("BinaryCrossentropy", False),
        ("crossentropy", False),
        ("kl_divergence", False),
        ("dice", False),
        (losses.binary_focal_crossentropy, False),
        (losses.Tversky(), False),
        (losses.CategoricalFocalCrossentropy(from_logits=True), True),
        ("mse", None),
        (losses.Huber(), None),
        ("hinge", None),
        (HasNoConfig(), None),
        ({"a": "mse"}, None),
        (None, None),
    ],
)
def test_it_is_known_of_every_loss_whether_it_takes_logits(loss, logits):
    assert takes_logits(loss) is logits


def test_every_loss_of_keras_is_known_by_name():
    """A loss with `from_logits` takes probabilities by default; Keras' other losses are regressions or hinges."""
    classes = {name: value for name, value in vars(losses).items() if isinstance(value, type) and name != "Loss"}
    of_probabilities = {name for name, value in classes.items() if takes_logits(value()) is False}
    assert of_probabilities == {
        *("BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy", "CategoricalFocalCrossentropy"),
        *("SparseCategoricalCrossentropy", "KLDivergence", "Dice", "Tversky"),
    }


def test_logits_under_a_bare_loss_are_told_with_both_remedies():
    assert advice("sparse_categorical_crossentropy", layers.Dense(3)) == [
        "`loss: sparse_categorical_crossentropy` takes probabilities, and the network ends in `linear`: these are "
        "logits. Trained like this it learns little or nothing. Write `loss: {name: sparse_categorical_crossentropy, "
        "from_logits: true}`, or end the network in `softmax`."
    ]
    assert "or end the network in `sigmoid`" in advice("binary_crossentropy", layers.Dense(1))[0]
    assert advice("kl_divergence", layers.Dense(3))[0].endswith("End the network in `softmax`.")
    assert "Write the full name of the loss" in advice("crossentropy", layers.Dense(3))[0]


def test_logits_that_the_graph_does_not_show_are_found_in_the_numbers():
    told = advice("binary_crossentropy", layers.Dense(1), layers.Lambda(lambda x: x * 5))
    assert len(told) == 1
    assert "the network gives values from -" in told[0]
    assert not advice("binary_crossentropy", layers.Dense(1, "sigmoid"), layers.Lambda(lambda x: x * 1))


def test_probabilities_under_a_loss_of_logits_are_told():
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    assert advice(loss, layers.Dense(3, "softmax")) == [
        "`loss: {name: sparse_categorical_crossentropy, from_logits: true}` takes logits, and the network ends in "
        "`softmax`. Remove `from_logits`, or end the network without an activation."
    ]
    assert not advice(loss, layers.Dense(3))


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("sparse_categorical_crossentropy", "softmax"),
        ("binary_crossentropy", "sigmoid"),
        ("mse", None),
        ("hinge", None),
    ],
)
def test_a_loss_that_fits_needs_no_advice(loss, activation):
    assert not advice(loss, layers.Dense(2, activation))


def test_each_of_several_outputs_is_told_by_its_number():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [layers.Dense(1, "sigmoid")(inputs), layers.Dense(1)(inputs)])
    model.compile("sgd", "binary_crossentropy")
    told = list(advice_on_loss(model, X))
    assert len(told) == 1
    assert "output 2 of the network ends in `linear`" in told[0]
