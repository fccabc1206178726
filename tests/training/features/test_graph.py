"""The graph stands on private names of Keras; these tests hold them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from finetune.training.features.graph import can_open, open_graph, run

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def whole(model, x, training=False):
    graph = open_graph(model)
    return graph.outputs_of(run(graph.steps, graph.inputs_of(x), training=training))


def same(a, b):
    for one, other in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_array_equal(one, other)


def backbone(name="backbone"):
    parts = [keras.Input((6,)), layers.Dense(6, name="a"), layers.BatchNormalization(name="bn")]
    return keras.Sequential(parts, name=name)


def nested():
    inputs = keras.Input((6,))
    inner = keras.Input((6,))
    block = keras.Model(inner, layers.Add(name="add")([inner, backbone()(inner)]), name="block")
    return keras.Model(inputs, layers.Dense(2, name="head")(block(block(inputs))))


def test_the_steps_of_a_nested_model_give_what_the_model_gives():
    model = nested()
    names = [step.name for step in open_graph(model).steps if step.operation is not None]
    assert names == [*(["block/backbone/a", "block/backbone/bn", "block/add"] * 2), "head"]
    same(whole(model, X), model(X))


def test_training_is_passed_on():
    model = nested()
    before = model(X).numpy()
    whole(model, X, training=True)
    assert np.abs(model(X).numpy() - before).max() > 0  # the moving statistics moved
    moved = model(X).numpy()
    whole(model, X, training=False)
    same(model(X), moved)


def test_a_layer_can_be_set_to_infer_all_the_same():
    model = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5)])
    graph = open_graph(model)
    found = run(graph.steps, graph.inputs_of(X), training=True, inference=frozenset([id(model.layers[0])]))
    same(graph.outputs_of(found), X)


def two_in_two_out(as_dict):
    left, right = keras.Input((6,), name="zebra"), keras.Input((6,), name="ant")
    x = layers.Dense(3, name="d")(layers.Concatenate()([left, right]))
    outputs = {"sum": ops.sum(x, axis=1), "x": x} if as_dict else [ops.sum(x, axis=1), x]
    return keras.Model({"zebra": left, "ant": right} if as_dict else [left, right], outputs)


@pytest.mark.parametrize("as_dict", [True, False])
def test_several_inputs_and_outputs_keep_their_structure(as_dict):
    model = two_in_two_out(as_dict)
    x = {"zebra": X, "ant": X * 2} if as_dict else [X, X * 2]
    keras.tree.assert_same_structure(whole(model, x), model(x))
    same(whole(model, x), model(x))


def test_inputs_by_name_reach_a_model_that_lists_them():
    model = two_in_two_out(as_dict=False)
    same(whole(model, {"ant": X * 2, "zebra": X}), model([X, X * 2]))


def test_inputs_become_the_types_and_shapes_that_the_model_declares():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    same(whole(model, np.arange(4)), model(np.arange(4)))


def test_a_nested_model_takes_its_inputs_in_as_it_does_itself_under_mixed_precision():
    policy = keras.DTypePolicy("mixed_bfloat16")
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, dtype="float32")], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner(layers.Dense(6, dtype=policy)(inputs)))
    assert [step.operation for step in open_graph(model).steps].count(None) == 2
    same(whole(model, X), model(X))


def test_masks_go_along():
    parts = [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3, return_sequences=True), layers.LSTM(3)]
    model = keras.Sequential([keras.Input((7,), dtype="int32"), *parts])
    tokens = np.array([[1, 2, 3, 0, 0, 0, 0], [4, 5, 6, 7, 8, 1, 2]])
    same(whole(model, tokens), model(tokens))


def test_the_model_itself_is_not_changed():
    model = nested()
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    whole(model, tf.constant(X))
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class Doubled(keras.Model):
    def call(self, x, **options):
        return super().call(x, **options) * 2


def test_a_model_with_a_call_of_its_own_is_no_graph_of_layers():
    own = Own()
    own(X)
    inputs = keras.Input((6,))
    doubled = Doubled(inputs, layers.Dense(2, name="d")(inputs))
    assert not can_open(own)
    assert not can_open(doubled)
    model = keras.Sequential([keras.Input((6,)), doubled, layers.Dense(1)])
    assert [step.operation for step in open_graph(model).steps][1] is doubled
    same(whole(model, X), model(X))


def test_a_sequential_model_without_a_shape_is_none_either():
    assert not can_open(keras.Sequential([layers.Dense(2)]))


@pytest.mark.parametrize(
    ("shape", "x"),
    [
        ((1,), np.arange(5.0)),
        ((), np.arange(5.0)[:, None]),
        ((3, 1), np.arange(15).reshape(5, 3)),
        ((3,), np.arange(15).reshape(5, 3, 1)),
        ((1, 3), np.arange(15).reshape(5, 1, 3)),
        ((3, 1), np.arange(15).reshape(5, 3, 1)),
    ],
    ids=["a vector for a column", "a column for a vector", "an axis too few", "an axis too many", "1 by 3", "3 by 1"],
)
def test_inputs_are_converted_to_the_type_and_the_rank_of_the_model_as_keras_does(shape, x):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Rescaling(2.0)(inputs))
    output = whole(model, x)
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    same(output, model(x))


def test_a_model_with_a_list_of_one_output_gives_what_keras_gives():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [layers.Dense(2)(inputs)])
    output = whole(model, X)
    assert type(output) is type(model(X))
    same(output, model(X))


def test_a_sequential_model_with_its_own_call_cannot_be_opened():
    class Own(keras.Sequential):
        def call(self, *arguments, **options):
            return super().call(*arguments, **options)

    assert not can_open(Own([keras.Input((6,)), layers.Dense(2)]))
    assert can_open(keras.Sequential([keras.Input((6,)), layers.Dense(2)]))


def test_a_nested_model_of_named_inputs_is_opened_whatever_the_order_of_the_names():
    model = two_in_two_out(True)
    inner = {name: keras.Input((6,), name=name) for name in ("zebra", "ant")}
    for order in (["zebra", "ant"], ["ant", "zebra"]):
        outer = keras.Model(inner, model({name: inner[name] for name in order}))
        names = [step.name for step in open_graph(outer).steps if step.operation is not None]
        assert any(name.endswith("/d") for name in names)
        same(whole(outer, {"zebra": X, "ant": X * 2}), outer({"zebra": X, "ant": X * 2}))


def test_arguments_that_are_passed_by_name_are_passed_on():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layers.MultiHeadAttention(1, 2)(inputs, value=inputs[:, ::-1], key=inputs * 2))
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    same(whole(model, x), model(x))
