import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.checksum import checksum
from finetune.pretrained.restore import restore

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def functional(classes=3):
    """Two towers with layers of the same names, automatic names, attention, and BatchNorm."""
    tokens = keras.Input((4, 6))
    left, right = (keras.Sequential([layers.Input((6,)), layers.Dense(6, name="same")], name=n) for n in ("le", "ri"))
    x = layers.TimeDistributed(left)(tokens) + layers.TimeDistributed(right)(tokens)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(2))(x)
    x = layers.Dense(4)(layers.Dense(4)(x))
    x = layers.BatchNormalization(name="bn")(x)
    return keras.Model(tokens, layers.Dense(classes, name="head")(x))


def nested(classes=3):
    """Two functional models inside another one, with layers of the same names."""

    def backbone(name):
        inputs = keras.Input((4, 6))
        x = layers.DepthwiseConv1D(3, name="deep")(inputs)
        return keras.Model(inputs, layers.Conv1D(2, 1, name="conv")(x), name=name)

    inputs = keras.Input((4, 6))
    x = layers.Concatenate()([backbone("one")(inputs), backbone("two")(inputs)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


def sequential(classes=3):
    """Automatic names only."""
    conv = [
        layers.Conv1D(3, 2),
        layers.BatchNormalization(),
        layers.Dropout(0.1),
        layers.Conv1D(3, 2),
        layers.Flatten(),
    ]
    return keras.Sequential([keras.Input((4, 6)), *conv, layers.Dense(classes)])


class Block(layers.Layer):
    def __init__(self, width):
        super().__init__()
        self.attention = layers.MultiHeadAttention(1, 2)
        self.parts = [layers.Dense(5), layers.Dropout(0.1), layers.Dense(width, name="out")]
        self.scale = self.add_weight(shape=(), initializer="ones")

    def build(self, shape):
        self.attention.build(shape, shape)
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, x):
        y = self.attention(x, x)
        for part in self.parts:
            y = part(y)
        return x + self.scale * y


class Subclassed(keras.Model):
    """Parts in attributes, lists and dicts, before and after `layers` in the alphabet."""

    def __init__(self, classes=3):
        super().__init__()
        self.blocks = [Block(6), Block(6)]
        self.towers = [Block(6), layers.LayerNormalization()]
        self.by_name = {"x": layers.Dense(2), "y": layers.Dense(2)}
        self.rnn = layers.Bidirectional(layers.GRU(2))
        self.seq = keras.Sequential([layers.Dense(3), layers.BatchNormalization(name="bn")])
        self.bias = self.add_weight(shape=(6,), name="offset")
        self.classifier = layers.Dense(classes, name="head")

    def call(self, x):
        x = x + self.bias
        for part in (*self.blocks, *self.towers):
            x = part(x)
        x = self.rnn(self.by_name["x"](x) + self.by_name["y"](x))
        return self.classifier(self.seq(x))


def subclassed(classes=3):
    model = Subclassed(classes)
    model(np.zeros((1, 4, 6), "float32"))
    return model


MODELS = {builder.__name__: builder for builder in (functional, nested, sequential, subclassed)}


def trained(builder):
    """A compiled model with Adam's slots, all values random."""
    model = builder()
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in (*model.weights, *model.optimizer.variables[2:]):
        variable.assign(rng.normal(size=variable.shape))
    return model


def saved(model, kind, folder):
    if kind == "checkpoint":
        return tf.train.Checkpoint(net=model, step=tf.Variable(3)).save(str(folder / "ckpt"))
    path = folder / f"model{kind}"
    # Keras' legacy saver stops at two slots of one name, which towers with layers of the same names give.
    unique = len({weight.path for weight in model.weights}) == len(model.weights)
    model.save_weights(path) if kind == ".weights.h5" else model.save(path, include_optimizer=unique)
    return path


@pytest.fixture(scope="module", params=MODELS)
def pretrained(request):
    return MODELS[request.param], trained(MODELS[request.param])


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".h5", "checkpoint"])
def test_every_weight_comes_back_from_every_format_whatever_the_model_and_its_automatic_names(
    pretrained, kind, tmp_path
):
    builder, source = pretrained
    model = builder()
    restore(model, saved(source, kind, tmp_path))
    for ours, theirs in zip(layer_tree(model).leaves, layer_tree(source).leaves, strict=True):
        np.testing.assert_array_equal(ours.variable.numpy(), theirs.variable.numpy(), err_msg=ours.name)
