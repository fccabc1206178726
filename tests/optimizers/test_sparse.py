"""One rule for the repeated rows of sparse gradients, that of Keras or that of TF1, whatever the other options are."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.sparse import DivisibleSlices, divisible, merge_rows, on_values
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Adam = keras.optimizers.Adam
IDS = np.tile([[0, 1, 0, 2, 0, 3]], (16, 1))
LABELS = np.arange(16) % 2


def sparse():
    values = tf.constant([[3.0, 4.0], [1.0, 1.0], [3.0, 4.0]])
    return tf.IndexedSlices(values, tf.constant([2, 0, 2]), dense_shape=tf.constant([4, 2]))


def test_the_pieces_of_a_row_are_added_up_so_that_the_norm_is_that_of_the_gradient():
    (merged,) = merge_rows([sparse()])
    assert isinstance(merged, tf.IndexedSlices)
    assert merged.indices.numpy().tolist() == [2, 0]
    np.testing.assert_array_equal(merged.values, [[6, 8], [1, 1]])
    np.testing.assert_array_equal(merged.dense_shape, [4, 2])
    assert float(tf.norm(merged.values)) == float(tf.norm(tf.convert_to_tensor(sparse())))


def test_dense_gradients_and_missing_ones_stay_as_they_are():
    dense = tf.ones((2, 2))
    for change in (merge_rows, divisible, lambda gradients: on_values(list, gradients)):
        assert change([dense, None])[0] is dense
        assert change([dense, None])[1] is None


def test_a_function_of_the_pieces_leaves_a_gradient_sparse():
    doubled, dense, missing = on_values(
        lambda values: [None if value is None else 2 * value for value in values], [sparse(), tf.ones(2), None]
    )
    assert doubled.indices.numpy().tolist() == [2, 0, 2]
    np.testing.assert_array_equal(doubled.values, [[6, 8], [2, 2], [6, 8]])
    np.testing.assert_array_equal(dense, [2, 2])
    assert missing is None


def test_a_sparse_gradient_is_divided_piece_by_piece():
    (gradient,) = divisible([sparse()])
    assert isinstance(gradient, DivisibleSlices)
    half = gradient / 2.0
    assert half.indices.numpy().tolist() == [2, 0, 2]
    np.testing.assert_array_equal(half.values, [[1.5, 2], [0.5, 0.5], [1.5, 2]])
    np.testing.assert_array_equal(half.dense_shape, [4, 2])


# -- All options together ---------------------------------------------------------------------------------------------


class DenseGradient(layers.Embedding):
    def call(self, inputs):
        return tf.one_hot(tf.cast(inputs, "int32"), 5) @ self.embeddings


def embedding_model(embedding=layers.Embedding):
    keras.utils.set_random_seed(0)
    body, head = embedding(5, 4, name="body"), layers.Dense(2, name="head")
    return keras.Sequential([keras.Input((6,), dtype="int32"), body, layers.Flatten(), head])


def trained(way="fit", *, plain=False, scaled=False, jit_compile=False, embedding=layers.Embedding, **options):
    """Trains in one of the ways; returns the weights."""
    model = embedding_model(embedding)
    body, head = model.layers[0], model.layers[2]
    optimizer = (
        Adam(0.05, **options)
        if plain
        else GroupedOptimizer({"a": (Adam(0.05), body), "b": (Adam(0.05), head)}, **options)
    )
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile,
        steps_per_execution=2,
    )  # fmt: skip
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0}
    if way == "phases":
        groups = resolve_groups(model, [Selector("a", prefixes=("body",)), Selector("b", rest=True)])
        train_phases(model, groups, [Phase("all", epochs=1)], IDS, LABELS, **settings)
    elif way == "loop":
        step = tf.function(lambda x, y: step_by_hand(model, x, y))
        for start in range(0, 16, 4):
            step(tf.constant(IDS[start : start + 4]), tf.constant(LABELS[start : start + 4]))
    else:
        model.fit(IDS, LABELS, callbacks=[FastLoop()] if way == "fast" else [], **settings)
    return [v.numpy() for v in model.trainable_variables]


def step_by_hand(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.optimizer.scale_loss(model.compute_loss(x, y, model(x, training=True)))
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def distance(some, others):
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


# An option that never acts, or whose effect is exact, such as a scale that is a power of two.
IDLE = [
    {"clipvalue": 1e9},
    {"clipnorm": 1e9},
    {"global_clipnorm": 1e9},
    {"loss_scale_factor": 1.0},
    {"loss_scale_factor": 8.0},
    {"loss_scale_factor": 8.0, "global_clipnorm": 1e9},
    {"scaled": True},
    {"scaled": True, "clipnorm": 1e9},
]
MERGED = [{}, {"merge_rows": True}]


@pytest.fixture(scope="module")
def references():
    """The weights by Keras' rule, and by that of TF1: what Keras gives for a dense gradient."""

    return {"keras": trained(plain=True), "tf1": trained(plain=True, embedding=DenseGradient)}


def test_the_two_rules_move_an_embedding_by_different_distances(references):
    assert distance(references["keras"], references["tf1"]) > 1e-3


def test_the_default_has_the_bits_of_keras_and_merged_rows_those_of_a_dense_gradient(references):
    assert distance(trained(), references["keras"]) == 0
    assert distance(trained(merge_rows=True), references["tf1"]) < 1e-6


@pytest.mark.sample(6)
@pytest.mark.slow
@pytest.mark.parametrize("merged", MERGED, ids=str)
@pytest.mark.parametrize("idle", IDLE, ids=str)
def test_no_option_changes_the_rule_by_its_presence(idle, merged, references):
    rule = references["tf1" if merged else "keras"]
    assert distance(trained(**idle, **merged), rule) < 1e-6


@pytest.mark.sample(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "fused"), [*itertools.product(["fit", "fast", "phases", "loop"], ["auto", "on", "off"])]
)
def test_every_path_has_the_same_bits(way, fused):
    for merged in (False, True):
        assert distance(trained(way, fused=fused, merge_rows=merged), trained(merge_rows=merged)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("merged", MERGED, ids=str)
def test_xla_uses_the_same_rule(merged, references):
    rule = references["tf1" if merged else "keras"]
    assert distance(trained(jit_compile=True, **merged), rule) < 1e-6


@pytest.mark.sample(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.01},
        {"clipvalue": 0.001},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True},
        {"scaled": True, "clipnorm": 0.01},
    ],
    ids=str,
)
def test_an_option_that_acts_has_the_bits_of_keras(options):
    assert distance(trained(**options), trained(plain=True, **options)) == 0


@pytest.mark.slow
def test_a_global_norm_is_that_of_the_pieces_or_of_their_sums():
    # Keras makes the gradient dense by the way, so SGD, for which the two rules are one, shows the norm.
    def first_step(**options):
        model = embedding_model()
        sgd = keras.optimizers.SGD
        model.compile(
            GroupedOptimizer({layer.name: (sgd(1.0), layer) for layer in model.layers if layer.weights}, **options)
        )
        before = model.layers[0].embeddings.numpy()
        gradient = tf.IndexedSlices(tf.constant([[3.0, 4, 0, 0]] * 2), tf.constant([1, 1]), tf.constant([5, 4]))
        model.optimizer.apply([gradient], [model.layers[0].embeddings])
        return np.linalg.norm(before - model.layers[0].embeddings.numpy())

    assert first_step(global_clipnorm=5.0) == pytest.approx(5 * 10 / np.sqrt(50), rel=1e-6)
    assert first_step(global_clipnorm=5.0, merge_rows=True) == pytest.approx(5, rel=1e-6)


def test_the_setting_is_saved_with_the_optimizer():
    model = embedding_model()
    model.compile(GroupedOptimizer({"all": (Adam(0.05), model)}, merge_rows=True))
    again = keras.models.model_from_json(model.to_json())
    again.compile(GroupedOptimizer.from_config(model.optimizer.get_config()))
    assert again.optimizer.merge_rows is True
    old_file = {name: value for name, value in model.optimizer.get_config().items() if name != "merge_rows"}
    assert GroupedOptimizer.from_config(old_file).merge_rows is False
