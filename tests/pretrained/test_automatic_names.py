import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from finetune.pretrained.automatic_names import (
    _to_snake_case,
    automatic_name,
    has_automatic_name,
    is_automatic_name,
    renumber,
    without_number,
)


@pytest.mark.parametrize(
    "layer",
    [layers.Conv2D(1, 1), layers.MultiHeadAttention(1, 1), layers.LSTM(1), layers.RNN(layers.LSTMCell(1))]
    + [layers.BatchNormalization(), layers.GlobalAveragePooling2D(), keras.Sequential([keras.Input((1,))])],
)
def test_keras_names_layers_by_this_very_rule(layer):
    assert without_number(layer.name) == automatic_name(layer)
    assert is_automatic_name(layer.name)


def test_the_listing_of_layers_that_is_read_names_what_keras_names():
    names = [name for name, item in vars(keras.layers).items() if isinstance(item, type)]
    assert [name for name in names if not is_automatic_name(_to_snake_case(name))] == []


@pytest.mark.parametrize("name", ["head", "block_1", "conv", "conv1", "dense_layer", "denses_3"])
def test_names_that_people_give_are_not_automatic(name):
    assert not is_automatic_name(name)


def test_automatic_names_are_counted_among_their_siblings_by_number_not_by_spelling():
    named = renumber(["bb/dense_10", "bb/dense_9", "cc/dense_9", "bb/block_4"])
    assert named == {
        "bb/dense_10": "bb/dense(1/2)",
        "bb/dense_9": "bb/dense(0/2)",
        "cc/dense_9": "cc/dense(0/1)",
        "bb/block_4": "bb/block_4",
    }


@given(st.lists(st.integers(1, 50), unique=True, min_size=1), st.integers(0, 1000))
def test_what_was_built_before_makes_no_difference(numbers, before):
    early = renumber([f"sequential_{n}/lstm_{n}" for n in numbers])
    late = renumber([f"sequential_{n + before}/lstm_{n + before}" for n in numbers])
    assert list(early.values()) == list(late.values())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: layers.Dense(1), True),
        (lambda: layers.Dense(1, name="dense_99"), True),  # nothing tells it from an automatic name
        (lambda: layers.Dense(1, name="head"), False),
        (lambda: layers.Dense(1, name="conv1d"), False),  # the automatic name of another class
        (lambda: layers.Bidirectional(layers.LSTM(1)).forward_layer, True),
        (lambda: layers.Bidirectional(layers.LSTM(1)).backward_layer, True),
        (lambda: layers.Bidirectional(layers.LSTM(1, name="memory")).forward_layer, False),
    ],
)
def test_a_layer_has_an_automatic_name_if_keras_could_have_made_it_from_the_class(make, expected):
    assert has_automatic_name(make()) is expected


def test_the_halves_of_a_bidirectional_layer_are_numbered_like_layers():
    early = renumber(["bidirectional/forward_lstm/lstm_cell", "bidirectional/backward_lstm/lstm_cell"])
    late = renumber(["bidirectional_4/forward_lstm_4/lstm_cell_9", "bidirectional_4/backward_lstm_4/lstm_cell_8"])
    assert list(early.values()) == list(late.values())


def test_whole_models_are_named_like_layers():
    inputs = keras.Input((1,))
    for model in (keras.Model(inputs, inputs), keras.Sequential([inputs])):
        assert is_automatic_name(model.name)


def test_the_first_of_a_class_has_no_number_and_comes_before_the_others():
    assert renumber(["dense_1", "dense"]) == {"dense_1": "dense(1/2)", "dense": "dense(0/2)"}
