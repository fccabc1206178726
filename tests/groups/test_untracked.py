"""Variables that Keras does not see are named where the groups are made."""

import keras
import pytest
import tensorflow as tf

from finetune import HubLayer, export_hub
from finetune.groups.selectors import Selector, resolve_groups
from finetune.groups.untracked import advice_on_untracked, untracked_variables


class Scaling(keras.layers.Layer):
    """Multiplies by what it holds."""

    def __init__(self, **held):
        super().__init__(name="scaling")
        self.kept = self.add_weight(name="kept", shape=())
        for name, value in held.items():
            setattr(self, name, value)

    def call(self, inputs):
        return inputs * self.kept


def net(**held):
    return keras.Sequential([keras.Input((2,)), Scaling(**held), keras.layers.Dense(2, name="head")])


def module():
    made = tf.Module()
    made.factor = tf.Variable(1.0)
    return made


@pytest.mark.parametrize(
    "value",
    [lambda: tf.Variable(1.0), lambda: [tf.Variable(1.0)], lambda: {"a": (tf.Variable(1.0),)}, module],
    ids=["variable", "list", "dict", "module"],
)
def test_a_trainable_variable_that_keras_does_not_see_is_named_with_its_layer(value):
    assert untracked_variables(net(factor=value())) == ["scaling.factor"]


@pytest.mark.parametrize(
    "value",
    [
        lambda: tf.Variable(1.0, trainable=False),
        lambda: keras.Variable(1.0),
        lambda: keras.layers.Activation("relu"),
        lambda: keras.optimizers.SGD(),
        lambda: tf.constant(1.0),
    ],
    ids=["not trainable", "keras", "layer", "optimizer", "constant"],
)
def test_nothing_else_is(value):
    assert untracked_variables(net(factor=value())) == []


def test_the_variables_of_a_hub_layer_are_seen(tmp_path):
    export_hub(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), tmp_path / "hub")
    model = keras.Sequential([keras.Input((2,)), HubLayer(str(tmp_path / "hub"), name="hub")])
    assert untracked_variables(model) == []


def test_making_the_groups_warns_once_in_a_sentence():
    model = net(factor=tf.Variable(1.0))
    [sentence] = advice_on_untracked(model)
    assert sentence == (
        "Keras does not see the trainable variables in `scaling.factor`: they are neither trained nor saved with the "
        "weights. Make them with `self.add_weight` or `keras.Variable`; for a SavedModel use `finetune.HubLayer`."
    )
    with pytest.warns(UserWarning, match="^Keras does not see the trainable variables in `scaling.factor`"):
        resolve_groups(model, [Selector("all", rest=True)])
    assert advice_on_untracked(net()) == []
