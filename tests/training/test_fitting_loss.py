"""Without a loss, a `FineTuner` trains with the one that the targets and the network ask for."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import DataError
from finetune.training.fitting_loss import fitting_loss

X = np.linspace(-1, 1, 48, dtype="float32").reshape(12, 4)
CLASSES = np.arange(12) % 3


def network(outputs, activation=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), layers.Dense(outputs, activation=activation)])


@pytest.mark.parametrize(
    ("model", "y", "loss", "logits"),
    [
        (network(3, "softmax"), CLASSES, "sparse_categorical_crossentropy", False),
        (network(3), CLASSES, "sparse_categorical_crossentropy", True),
        (network(3), np.eye(3)[CLASSES], "categorical_crossentropy", True),
        (network(1, "sigmoid"), CLASSES % 2, "binary_crossentropy", False),
        (network(1), CLASSES % 2, "binary_crossentropy", True),
        (network(2, "sigmoid"), np.tile([[0, 1], [1, 1], [0, 0]], (4, 1)), "binary_crossentropy", False),
        (network(1), CLASSES * 1.7, "mean_squared_error", False),
    ],
)
def test_the_loss_fits_the_targets_and_takes_logits_where_the_network_gives_them(model, y, loss, logits):
    chosen = fitting_loss(model, X, y)
    assert f"loss: `{loss}`{' of logits' if logits else ''}, chosen by the targets" in chosen.reason
    assert getattr(chosen.loss, "from_logits", False) is logits
    model.compile("sgd", chosen.loss, metrics=chosen.metrics)
    results = model.evaluate(X, y, verbose=0, return_dict=True)
    outputs = np.asarray(model(X))
    if "accuracy" in results:
        is_one = outputs.shape[1] == 1
        taken = outputs[:, 0] > (0 if logits else 0.5) if is_one else outputs.argmax(1)
        labels = y if y.ndim == 1 else y.argmax(1)
        assert results["accuracy"] == pytest.approx((taken == labels).mean())  # also of logits of two classes


def test_several_outputs_get_a_loss_each():
    inputs = keras.Input((4,))
    outputs = [layers.Dense(3, activation="softmax", name="kind")(inputs), layers.Dense(1, name="size")(inputs)]
    model = keras.Model(inputs, outputs)
    chosen = fitting_loss(model, X, {"kind": CLASSES, "size": CLASSES * 1.7})
    assert chosen.loss == {"kind": "sparse_categorical_crossentropy", "size": "mean_squared_error"}


@pytest.mark.parametrize(
    ("outputs", "y", "names", "loss"),
    [
        (3, CLASSES, (), "sparse_categorical_crossentropy"),
        (3, np.eye(3)[CLASSES], ("a", "b", "c"), "categorical_crossentropy"),
        (1, (CLASSES % 2)[:, None].astype("float32"), ("a", "b"), "binary_crossentropy"),
    ],
)
def test_of_a_dataset_only_the_types_are_looked_at(outputs, y, names, loss):
    def rows():
        raise AssertionError("read")
        yield

    spec = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, *y.shape[1:]), y.dtype))
    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec)
    assert (
        f"`{loss}`"
        in fitting_loss(network(outputs, "softmax" if outputs > 1 else "sigmoid"), dataset, None, names).reason
    )


@pytest.mark.parametrize("data", ["dataset", "other"])
def test_targets_that_do_not_say_it_ask_for_the_loss(data):
    numbers = tf.data.Dataset.from_tensor_slices((X, CLASSES.astype("float32"))).batch(4)
    with pytest.raises(
        DataError, match=r"Pass `loss=` and `metrics=`, as to `model.compile`: `FineTuner\(model, data, loss"
    ):
        fitting_loss(network(1), numbers if data == "dataset" else object(), None)
