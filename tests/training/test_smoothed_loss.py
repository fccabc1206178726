"""Label smoothing for numbers of classes against Keras' own for one-hot targets."""

import keras
import numpy as np
import pytest

from finetune.training.smoothed_loss import SmoothedSparseCategoricalCrossentropy

LABELS = np.array([0, 2, 1, 2])
LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, np.newaxis]])
def test_the_value_is_that_of_keras_for_one_hot_targets(smoothing, from_logits, labels):
    outputs = LOGITS if from_logits else np.asarray(keras.ops.softmax(LOGITS))
    plain = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing, from_logits=from_logits)
    loss = SmoothedSparseCategoricalCrossentropy(smoothing, from_logits=from_logits)
    np.testing.assert_allclose(loss(labels, outputs), plain(np.eye(3, dtype="float32")[LABELS], outputs), rtol=1e-5)


def test_the_value_holds_for_every_position_of_an_image():
    outputs = np.random.default_rng(1).normal(size=(2, 4, 5, 3)).astype("float32")
    labels = np.random.default_rng(2).integers(0, 3, (2, 4, 5))
    plain = keras.losses.CategoricalCrossentropy(label_smoothing=0.2, from_logits=True)
    loss = SmoothedSparseCategoricalCrossentropy(0.2, from_logits=True)
    np.testing.assert_allclose(loss(labels, outputs), plain(np.eye(3)[labels], outputs), rtol=1e-5)


def test_rows_of_an_ignored_class_count_0():
    loss = SmoothedSparseCategoricalCrossentropy(0.1, from_logits=True, ignore_class=2, reduction="none")
    values = np.asarray(loss(LABELS, LOGITS))
    assert values[1] == values[3] == 0
    assert (values[[0, 2]] > 0).all()


def test_a_loss_is_made_again_from_its_config():
    loss = SmoothedSparseCategoricalCrossentropy(0.1, from_logits=True, ignore_class=2)
    again = SmoothedSparseCategoricalCrossentropy.from_config(loss.get_config())
    assert again(LABELS, LOGITS) == loss(LABELS, LOGITS)
    assert again.name == "sparse_categorical_crossentropy"
