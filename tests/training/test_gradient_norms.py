"""Relative gradient norms are those of NumPy, and measuring them leaves no trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.freezing import freeze
from finetune.training.gradient_norms import auto_rgn, relative_gradient_norms

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 1)).astype("float32")


def linear() -> tuple[keras.Model, tuple]:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="body"), keras.layers.Dense(1, name="head")]
    )
    groups = resolve_groups(model, [Selector("body", prefixes=("body",), frozen=True), Selector("head", rest=True)])
    freeze(model, groups)
    model.compile("sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model, groups


def batches(rows: int = 32) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).batch(16)


def test_the_norms_are_those_computed_by_hand_frozen_groups_included():
    model, groups = linear()
    w1, b1, w2, b2 = (weight.numpy() for weight in model.weights)
    expected = {"body": [], "head": []}
    for x, y in ((X[:16], Y[:16]), (X[16:], Y[16:])):
        hidden = x @ w1 + b1
        error = 2 * (hidden @ w2 + b2 - y) / len(x)
        head = [hidden.T @ error, error.sum(axis=0)]
        body = [x.T @ (error @ w2.T), (error @ w2.T).sum(axis=0)]
        for name, gradients, weights in (("body", body, (w1, b1)), ("head", head, (w2, b2))):
            norms = [np.sqrt(sum((one**2).sum() for one in ones)) for ones in (gradients, weights)]
            expected[name].append(norms[0] / norms[1])
    found = relative_gradient_norms(model, groups, batches())
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, rtol=1e-5)


def test_nothing_changes_and_what_was_frozen_is_frozen_again():
    model, groups = linear()
    before = [weight.numpy() for weight in [*model.weights, *model.optimizer.variables]]
    counted = []
    relative_gradient_norms(model, groups, batches(), on_batch=counted.append)
    after = [weight.numpy() for weight in [*model.weights, *model.optimizer.variables]]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [weight.path for weight in model.trainable_weights] == [weight.path for weight in model.layers[1].weights]
    assert counted == [1, 2]


def test_embeddings_used_twice_in_a_batch_count_once_with_their_sum():
    layer = keras.layers.Embedding(3, 2, name="words")
    model = keras.Sequential([keras.Input((2,), dtype="int32"), layer, keras.layers.GlobalAveragePooling1D()])
    model.compile("sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    [group] = resolve_groups(model, [Selector("all", rest=True)])
    data = tf.data.Dataset.from_tensors((np.array([[1, 1]]), np.zeros((1, 2), "float32")))
    [ratio] = relative_gradient_norms(model, [group], data)["all"]
    weights = layer.get_weights()[0]
    np.testing.assert_allclose(ratio, np.linalg.norm(weights[1]) / np.linalg.norm(weights), rtol=1e-5)


def test_a_group_that_is_not_pulled_at_all_is_reported():
    model, groups = linear()
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    with pytest.raises(TrainingError, match=r"It is not for `body`, `head`: the gradient is 0 or not finite"):
        relative_gradient_norms(model, groups, batches())


def test_auto_rgn_gives_the_peak_to_the_largest_and_the_others_in_proportion():
    assert auto_rgn({"a": 0.5, "b": 2.0}, 1e-2) == {"a": pytest.approx(2.5e-3), "b": 1e-2}


def test_a_frozen_group_that_holds_statistics_alone_is_frozen_again_afterwards():
    norm = keras.layers.BatchNormalization(center=False, scale=False, name="norm")
    model = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(1, name="head")])
    groups = resolve_groups(model, [Selector("norm", prefixes=("norm",), frozen=True), Selector("head", rest=True)])
    freeze(model, groups)
    model.compile("sgd", loss="mse")
    model.optimizer.build(model.trainable_variables)
    assert list(relative_gradient_norms(model, groups, batches())) == ["head"]
    assert not norm.trainable
