"""What counts as a weight that is no finite number, and how it is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.groups.finite_values import is_variance, listed, problem_in, problems_in
from finetune.groups.layer_tree import layer_tree


class Masked(keras.layers.Layer):
    """Holds a constant mask of minus infinity, as causal attention does."""

    def build(self, shape):
        self.mask = self.add_weight(shape=(2, 2), trainable=False, name="mask")
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        return x * self.scale


@pytest.fixture
def model():
    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, name="stem"), layers.BatchNormalization(name="bn"), Masked(name="masked")]
    )
    net.get_layer("masked").mask.assign([[0.0, -np.inf], [0.0, 0.0]])
    return net


def leaf(model, name):
    return next(leaf for leaf in layer_tree(model).leaves if leaf.name == name)


def test_a_sound_network_has_no_problems_and_a_constant_mask_may_be_infinite(model):
    assert problems_in(layer_tree(model).leaves) == []


@pytest.mark.parametrize(
    ("name", "place", "value", "problem"),
    [
        ("stem/kernel", (1, 2), np.nan, "1 of 6 values are no finite numbers, the first at [1, 2]: nan"),
        ("stem/bias", (0,), np.inf, "1 of 3 values are no finite numbers, the first at [0]: inf"),
        ("bn/moving_mean", (2,), -np.inf, "1 of 3 values are no finite numbers, the first at [2]: -inf"),
        ("bn/moving_variance", (1,), np.nan, "1 of 3 values are no finite numbers, the first at [1]: nan"),
        ("bn/moving_variance", (1,), -0.5, "1 of 3 values of a variance are negative, the first at [1]: -0.5"),
        ("masked/mask", (0, 0), np.nan, "1 of 4 values are no finite numbers, the first at [0, 0]: nan"),
        ("masked/scale", (), np.nan, "1 of 1 values are no finite numbers, the first at the only value: nan"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_is_named_with_its_group_and_the_place_of_the_first_wrong_value(
    model, name, place, value, problem, frozen
):
    variable = leaf(model, name).variable
    values = np.array(variable.numpy())
    values[place] = value
    variable.assign(values)
    model.trainable = not frozen
    assert problems_in(layer_tree(model).leaves, {name: "body"}) == [f"`{name}` (group `body`): {problem}"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_type_of_numbers_is_checked(dtype):
    layer = keras.layers.Dense(2, dtype=dtype, name="d")
    model = keras.Sequential([keras.Input((2,)), layer])
    assert problems_in(layer_tree(model).leaves) == []
    layer.kernel.assign(np.array([[1.0, np.inf], [0.0, 0.0]]))
    assert problems_in(layer_tree(model).leaves)[0].endswith("the first at [0, 1]: inf")


def test_complex_numbers_are_checked_in_both_parts():
    module = tf.Module()
    module.weight = tf.Variable(tf.complex([1.0, 2.0], [0.0, float("nan")]), name="weight")
    assert len(problems_in(layer_tree(module).leaves)) == 1


def test_whole_numbers_and_text_have_no_problems(model):
    assert problem_in(leaf(model, "stem/kernel"), np.array([-1, 2])) == ""
    assert problem_in(leaf(model, "stem/kernel"), np.array(["a"])) == ""


def test_only_variances_must_not_be_negative(model):
    assert [leaf.name for leaf in layer_tree(model).leaves if is_variance(leaf)] == ["bn/moving_variance"]


def test_five_weights_are_listed_at_most():
    assert listed([*"abcdefg"]) == "a; b; c; d; e and 2 more"
