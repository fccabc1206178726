"""A part of a stacked variable passes for a variable, whoever reads or writes it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.fused.slots import SlotView, gather_scalars, share_storage
from finetune.optimizers.grouped import GroupedOptimizer

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Adam = keras.optimizers.Adam


def make_variables(number, shape=(3,)):
    return [
        tf.Variable(np.random.default_rng(i).standard_normal(shape).astype("f4"), name=f"v{i}") for i in range(number)
    ]


def groups_of_one(variables, make=Adam, **settings):
    return GroupedOptimizer([(make(0.1 / (i + 1)), v) for i, v in enumerate(variables)], **settings)


def gradients(variables, seed=0):
    return [
        tf.constant(np.random.default_rng([seed, i]).standard_normal(v.shape), "float32")
        for i, v in enumerate(variables)
    ]


def train(optimizer, variables, steps=3, only=None):
    for step in range(steps):
        pairs = list(zip(gradients(variables, step), variables, strict=True))
        optimizer.apply_gradients(pairs if only is None else [pairs[i] for i in only])
    return [v.numpy() for v in variables]


def assert_identical(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_slot_view_is_read_and_written_as_the_slot_of_one_variable():
    variables = make_variables(3, (4, 2))
    optimizer = groups_of_one(variables)
    train(optimizer, variables)
    first, second = (
        next(v for v in child.variables if isinstance(v, SlotView))
        for child in list(optimizer.group_optimizers.values())[:2]
    )
    before = second.numpy()
    first.assign(tf.ones((4, 2)))
    first.assign_add(tf.ones((4, 2)))
    first.assign_sub(tf.fill((4, 2), 0.5))
    rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]))
    first.scatter_add(rows)
    np.testing.assert_array_equal(np.asarray(first)[:, 0], [1.5, 3.5, 1.5, 1.5])
    first.scatter_sub(rows)
    first.scatter_update(tf.IndexedSlices(tf.zeros((1, 2)), tf.constant([0])))
    np.testing.assert_array_equal(tf.convert_to_tensor(first)[:, 0], [0, 1.5, 1.5, 1.5])
    np.testing.assert_array_equal(first - 1.0, first.numpy() - 1)
    np.testing.assert_array_equal(second.numpy(), before)
    assert (first.shape, first.dtype) == ((4, 2), "float32")
    assert repr(first) == f"<SlotView path={first.path}, shape=(4, 2), dtype=float32>"


@pytest.mark.parametrize("fused", ["auto", "off"])
def test_the_rate_of_a_group_can_be_read_written_and_calculated_with_as_a_variable(fused):
    optimizer = groups_of_one(make_variables(3), fused=fused)
    rate = optimizer.group_optimizers["group_1"].learning_rate
    assert isinstance(rate, keras.Variable)
    rate.assign(2.0)
    rate.assign_add(1.0)
    assert (float(rate), int(rate), float(-rate), float(abs(rate)), float(rate[...])) == (3, 3, -3, 3, 3)
    assert (float(rate * 2), float(2 - rate), float(tf.square(rate)), rate.numpy(), bool(rate > 1)) == (
        6,
        -1,
        9,
        3,
        True,
    )
    assert list(optimizer.learning_rates.values()) == pytest.approx([0.1, 3, 0.1 / 3])
    optimizer.group_optimizers["group_1"].learning_rate = 5.0
    assert (float(rate), optimizer.group_optimizers["group_1"].get_config()["learning_rate"]) == (5, 5)


def test_two_views_of_one_variable_do_not_see_each_others_writes():
    stacked = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
    first, second = (SlotView(stacked, i, f"optimizer/slot_{i}") for i in range(2))
    first.assign_add([10.0, 10.0])
    second.assign_sub([1.0, 1.0])
    np.testing.assert_array_equal(stacked.numpy(), [[11, 12], [2, 3]])
    assert (first.path, first.name) == ("optimizer/slot_0", "slot_0")


def test_a_checkpoint_of_a_view_is_that_of_a_variable_and_either_loads_into_the_other(tmp_path):
    stacked = tf.Variable([[1.0], [2.0]])
    view, variable = SlotView(stacked, 1, "slot"), tf.Variable([5.0])
    path = tf.train.Checkpoint(slot=view).write(str(tmp_path / "view"))
    tf.train.Checkpoint(slot=variable).read(path).assert_consumed()
    assert variable.numpy() == [2.0]
    variable.assign([7.0])
    tf.train.Checkpoint(slot=view).read(tf.train.Checkpoint(slot=variable).write(str(tmp_path / "variable")))
    np.testing.assert_array_equal(stacked.numpy(), [[1], [7]])


def test_scalars_that_share_their_storage_remain_variables_and_are_read_at_once_in_any_order():
    scalars = [keras.Variable(float(i)) for i in range(3)]
    share_storage(scalars)
    scalars[1].assign(7.0)
    assert [float(v) for v in scalars] == [0, 7, 2]
    gathered = gather_scalars([scalars[i] for i in (1, 2, 1)])
    assert gathered is not None
    np.testing.assert_array_equal(gathered, [7, 2, 7])


def test_scalars_of_different_types_keep_their_storage():
    scalars = [keras.Variable(1.0), keras.Variable(1.0, dtype="float64")]
    share_storage(scalars)
    assert gather_scalars(scalars) is None
    assert not any(isinstance(v.value, SlotView) for v in scalars)


def test_scalars_of_two_storages_or_without_one_are_not_read_at_once():
    one, other, alone = ([keras.Variable(float(i)) for i in range(2)] for _ in range(3))
    share_storage(one)
    share_storage(other)
    assert gather_scalars([*one, *other]) is None
    assert gather_scalars([*one, alone[0]]) is None
    assert gather_scalars([lambda: 0.1]) is None


def test_a_view_has_the_type_and_the_path_of_a_slot_and_is_not_trained():
    view = SlotView(tf.Variable(tf.zeros((3, 4, 2), tf.float16)), 1, "adam/kernel_momentum")
    assert (view.path, view.name, view._shared_name) == ("adam/kernel_momentum", "kernel_momentum", view.path)
    assert (tuple(view.shape), view.dtype, view.trainable) == ((4, 2), "float16", False)


def test_the_copy_that_an_asynchronous_checkpoint_writes_follows_the_view_only_when_it_is_made_again():
    stacked = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
    view, copies = SlotView(stacked, 1, "adam/m"), {}
    view._copy_trackable_to_cpu(copies)
    stacked.assign_add(tf.ones((2, 2)))
    assert copies[view].numpy().tolist() == [3, 4]
    copy = copies[view]
    view._copy_trackable_to_cpu(copies)
    assert copies[view] is copy
    assert copy.numpy().tolist() == [4, 5]


def test_a_tape_does_not_record_scalars_that_share_their_storage():
    scalars = [keras.Variable(float(i), trainable=False) for i in range(2)]
    share_storage(scalars)
    with tf.GradientTape() as tape:
        gather_scalars(scalars)
        tf.convert_to_tensor(scalars[0])
    assert tape.watched_variables() == ()
