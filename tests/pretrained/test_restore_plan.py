import keras
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.pretrained.matching_rules import Pair
from finetune.pretrained.restore_plan import RestorePlan, dtype_of, is_under, shape_of


@pytest.fixture
def leaves():
    """The four weights of two layers: 12 + 4 and 8 + 2 parameters."""
    stack = [layers.Dense(4, name="body"), layers.Dense(2, name="head", dtype="bfloat16")]
    return layer_tree(keras.Sequential([keras.Input((3,)), *stack])).leaves


def plan_of(restored, missing=(), conflict=(), excluded=(), problems=()):
    def pairs(leaves):
        return tuple(Pair(x, StoredTensor(x.name, shape_of(x), "float32", lambda: 0), "name") for x in leaves)

    return RestorePlan("w.npz", "npz", pairs(restored), tuple(missing), (), pairs(conflict), tuple(excluded), problems)


@pytest.mark.parametrize(
    ("name", "prefix", "under"),
    [("a/kernel", "a", True), ("a", "a", True), ("ab/kernel", "a", False), ("a/Logits", "a/", True)]
    + [("a/LogitsAux/w", "a/Logits", False), ("b/a/kernel", "a", False)],
)
def test_a_prefix_ends_at_a_slash(name, prefix, under):
    assert is_under(name, [prefix]) is under


def test_the_coverage_is_the_share_of_parameters_and_excluded_weights_do_not_count(leaves):
    assert plan_of(leaves).coverage == 1
    assert plan_of(leaves[:2], missing=leaves[2:]).coverage == 16 / 26
    assert plan_of(leaves[:2], missing=leaves[2:3], conflict=leaves[3:]).coverage == 16 / 26
    assert plan_of(leaves[:2], excluded=leaves[2:]).coverage == 1
    assert plan_of([]).coverage == 0


def test_a_plan_without_problems_passes_and_one_with_some_raises_all_of_them(leaves):
    plan_of(leaves).check()
    with pytest.raises(RestoreError) as caught:
        plan_of([], problems=("the first", "the second")).check()
    assert str(caught.value) == (
        "`w.npz` (npz) does not fit the model; nothing was restored.\n- the first\n- the second"
    )


def test_shape_and_type_of_a_weight_are_plain_whether_keras_or_tensorflow_made_it(leaves):
    assert [(shape_of(leaf), dtype_of(leaf)) for leaf in leaves[1:3]] == [((4,), "float32"), ((4, 2), "bfloat16")]
    module = tf.Module()
    module.weight = tf.Variable(tf.ones((2, 3), tf.float16))
    (leaf,) = layer_tree(module).leaves
    assert (shape_of(leaf), dtype_of(leaf)) == ((2, 3), "float16")
