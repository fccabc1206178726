import keras
import numpy as np
import pytest
from keras import layers

from finetune.groups.layer_tree import layer_tree
from finetune.training.inference import layers_in_frozen_part, run_in_inference_mode, undo_inference_mode


def frozen_by(model, *prefixes):
    tree = layer_tree(model)
    frozen = {id(leaf.variable) for leaf in tree.leaves if leaf.name.startswith(prefixes)}
    return [layer.name for layer in layers_in_frozen_part(model, tree.leaves, frozen)]


def sequence(*parts):
    return keras.Sequential([keras.Input((6,)), *parts])


def test_a_layer_at_rest_is_called_in_inference_mode_and_let_go_it_is_as_before():
    drop = layers.Dropout(0.5)
    x = np.ones((4, 8), "float32")
    run_in_inference_mode([drop])
    np.testing.assert_array_equal(drop(x, training=True), x)
    assert "call" not in str(drop.get_config())
    undo_inference_mode([drop])
    assert "call" not in vars(drop)
    assert np.any(drop(x, training=True) == 0)


def test_a_call_that_somebody_else_put_on_the_layer_comes_back():
    drop = layers.Dropout(0.5)
    own = drop.call
    drop.call = lambda inputs, training=False: own(inputs, training=training) + 1.0
    mine = drop.call
    run_in_inference_mode([drop])
    np.testing.assert_array_equal(drop(np.ones((2, 3)), training=True), np.full((2, 3), 2.0))
    undo_inference_mode([drop])
    assert drop.call is mine


def test_dropout_between_frozen_layers_rests_and_the_one_before_a_trained_layer_does_not():
    model = sequence(
        layers.GaussianNoise(0.1, name="noise"),
        layers.Dense(4, name="one"),
        layers.AlphaDropout(0.1, name="between"),
        layers.Dense(4, name="two"),
        layers.Dropout(0.1, name="after"),
        layers.Dense(4, name="three"),
    )
    assert frozen_by(model, "one", "two") == ["between"]  # not the noise on the inputs, which may be augmentation
    assert frozen_by(model, "one", "two", "three") == ["between", "after"]
    assert frozen_by(model, "two", "three") == []  # what is before it still changes
    assert frozen_by(model, "one") == []


def test_dropout_inside_a_frozen_attention_rests_with_it():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, dropout=0.5, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    assert "attention" in frozen_by(model, "attention")
    tree = layer_tree(model)
    frozen = {id(leaf.variable) for leaf in tree.leaves if leaf.name.startswith("attention")}
    held = layers_in_frozen_part(model, tree.leaves, frozen)
    values = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    attention = model.get_layer("attention")
    run_in_inference_mode(held)
    np.testing.assert_array_equal(attention(values, values, training=True), attention(values, values, training=False))
    undo_inference_mode(held)
    assert not np.array_equal(attention(values, values, training=True), attention(values, values, training=False))


@pytest.mark.parametrize("recurrent", ["LSTM", "GRU"])
def test_dropout_of_a_frozen_recurrent_layer_rests(recurrent):
    layer = getattr(layers, recurrent)(4, dropout=0.5, recurrent_dropout=0.5, name="recurrent")
    model = keras.Sequential([keras.Input((5, 3)), layer, layers.Dense(2, name="head")])
    assert frozen_by(model, "recurrent")[0] == "recurrent"
    x = np.ones((2, 5, 3), "float32")
    run_in_inference_mode([layer])
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))


def test_a_nested_model_that_is_frozen_rests_whole_with_the_dropout_at_its_end():
    inner = sequence(layers.Dense(4, name="one"), layers.Dropout(0.5, name="end"))
    inner.name = "inner"
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(inner(inputs)))
    assert "end" in frozen_by(model, "inner")
    assert "end" not in frozen_by(model, "head")
