"""Features of texts: as short in a batch as the texts themselves, and with the values of the full length."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from finetune.data.rows import take_batch
from finetune.data.tokens import token_rows, tokenize, width_of_batches
from finetune.training.features.cache import cached_features
from finetune.training.features.cut import find_cut

LENGTHS = [3, 20, 1, 30, 5, 16, 17, 2]


def encode(rows):
    lengths = np.array([len(text) for (text,) in rows], np.int64)
    ids = np.concatenate([np.arange(1, length + 1, dtype=np.int32) for length in lengths])
    return ids, np.zeros_like(ids), lengths, lengths > 40


@pytest.fixture
def tokens():
    return tokenize([("a" * length,) for length in LENGTHS], encode, "settings")


def rows_of(tokens, part="ids", padding="buckets"):
    return token_rows(tokens, part, length=40, width=width_of_batches(tokens, 40, padding))


def network(*frozen):
    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(50, 4, mask_zero=True, name="embedding")(ids)
    x = layers.Dense(4, name="dense")(x)
    model = keras.Model(ids, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D(name="pool")(x)))
    return freeze(model, frozen)


def freeze(model, names):
    for layer in model.layers:
        layer.trainable = layer.name not in names
    model.compile("sgd", "mse")
    return model


def features_of(model, x, passes=1):
    features = cached_features(find_cut(model, allow_random=passes > 1), x, batch_size=4, mode="memory", passes=passes)
    assert not isinstance(features, str)
    return features


def widths(features, start=0):
    batch = take_batch((features.values, features.masks), tf.constant([0, 2], tf.int64) + start)
    return sorted({tuple(part.shape) for part in tf.nest.flatten(batch)})


def test_features_of_short_texts_are_short_and_so_are_their_masks(tokens):
    features = features_of(network("embedding"), rows_of(tokens))
    assert widths(features) == [(2, 16), (2, 16, 4)]
    assert widths(features, start=1) == [(2, 32), (2, 32, 4)]


def test_the_tail_gives_what_the_model_gives(tokens):
    model, rows = network("embedding"), rows_of(tokens)
    features = features_of(model, rows)
    indices = tf.constant([0, 4, 2], tf.int64)
    batch = take_batch((features.values, features.masks), indices)
    np.testing.assert_allclose(features.tail(batch, training=True), model(take_batch(rows, indices)), rtol=1e-5)


def test_features_without_an_axis_of_tokens_stay_whole(tokens):
    assert widths(features_of(network("embedding", "dense", "pool"), rows_of(tokens))) == [(2, 4)]


def test_the_length_in_another_axis_keeps_everything_whole(tokens):
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(50, 4, name="embedding")(ids)
    scores = layers.Permute((2, 1), name="turn")(x)  # (rows, 4, tokens)
    model = keras.Model(ids, layers.Dense(2, name="head")(ops.sum(scores, axis=2)))
    features = features_of(freeze(model, ["embedding", "turn"]), rows_of(tokens))
    assert all(40 in shape or shape == (2, 4) for shape in widths(features))


def test_texts_with_lengths_of_their_own_keep_everything_whole(tokens):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("a", "b")]
    embed = layers.Embedding(50, 4, name="embedding")
    x = layers.Concatenate(name="both")([embed(each) for each in inputs])
    model = freeze(keras.Model(inputs, layers.Dense(2, name="head")(x)), ["embedding", "both"])
    x = {"a": rows_of(tokens), "b": rows_of(tokens, padding="longest")}
    assert widths(features_of(model, x)) == [(2, 40, 8)]


def test_an_input_that_crosses_is_as_short_as_the_features(tokens):
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("ids", "mask"))
    x = layers.Embedding(50, 4, name="embedding")(ids)
    weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
    pooled = ops.sum(layers.Dense(4, name="dense")(x) * weights, axis=1)
    model = freeze(keras.Model([ids, mask], layers.Dense(2, name="head")(pooled)), ["embedding"])
    width = width_of_batches(tokens, 40, "buckets")
    x = {part: token_rows(tokens, part, length=40, width=width) for part in ("ids", "mask")}
    features = features_of(model, x)
    assert {shape[1] for shape in widths(features)} == {16}
    indices = tf.constant([1, 2], tf.int64)
    batch = take_batch((features.values, features.masks), indices)
    np.testing.assert_allclose(features.tail(batch, training=True), model(take_batch(x, indices)), rtol=1e-5)


def test_each_pass_has_the_lengths_of_its_texts(tokens):
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.GaussianNoise(0.1, name="noise")(layers.Embedding(50, 4, mask_zero=True, name="embedding")(ids))
    x = layers.Dense(4, name="dense")(layers.Dense(4, name="frozen")(x))
    model = keras.Model(ids, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x)))
    model = freeze(model, ["embedding", "noise", "frozen"])
    features = features_of(model, rows_of(tokens), passes=2)
    assert features.passes == 2
    for begin in (0, len(LENGTHS)):
        assert {shape[1] for shape in widths(features, start=begin)} == {16}
        assert {shape[1] for shape in widths(features, start=begin + 1)} == {32}


def test_rows_of_full_length_are_as_they_were(tokens):
    rows = token_rows(tokens, "ids", length=40)
    assert widths(features_of(network("embedding"), rows)) == [(2, 40), (2, 40, 4)]
