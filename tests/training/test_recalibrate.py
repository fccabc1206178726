import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.recalibrate import recalibrate


def network():
    parts = [
        keras.Input((6,)),
        layers.Dense(4, name="one"),
        layers.Dropout(0.5),
        layers.BatchNormalization(name="bn1", momentum=0.99),
        layers.Dense(4, name="two"),
        layers.BatchNormalization(name="bn2"),
    ]
    return keras.Sequential(parts)


def batches(rows, size=30):
    return tf.data.Dataset.from_tensor_slices(rows).batch(size)


def everything(model):
    return resolve_groups(model, [Selector("all", rest=True)])


def test_statistics_are_the_mean_over_the_batches_and_nothing_else_changes(rows):
    model = network()
    before = {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}
    assert recalibrate(model, everything(model), batches(rows)) == 2
    after = {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        *("bn1/moving_mean", "bn1/moving_variance", "bn2/moving_mean", "bn2/moving_variance")
    }
    first = [rows[0][at : at + 30] @ before["one/kernel"] for at in (0, 30, 60)]  # nothing is dropped
    np.testing.assert_allclose(after["bn1/moving_mean"], np.mean([x.mean(0) for x in first], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["bn1/moving_variance"], np.mean([x.var(0) for x in first], 0), rtol=1e-4)
    second = [((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)) @ before["two/kernel"] for x in first]
    np.testing.assert_allclose(after["bn2/moving_variance"], np.mean([x.var(0) for x in second], 0), rtol=1e-3)
    assert model.get_layer("bn1").momentum == 0.99


def test_statistics_of_a_frozen_group_stand(rows):
    model = network()
    groups = resolve_groups(model, [Selector("low", prefixes=("one", "bn1"), frozen=True), Selector("top", rest=True)])
    before = model.get_layer("bn1").moving_mean.numpy()
    assert recalibrate(model, groups, batches(rows)) == 1
    np.testing.assert_array_equal(model.get_layer("bn1").moving_mean, before)


def test_no_batch_is_an_error(rows):
    model = network()
    with pytest.raises(TrainingError, match="Received no batch"):
        recalibrate(model, everything(model), batches(rows).take(0))
