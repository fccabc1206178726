import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.grouped import GroupedOptimizer

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def variable(name="kernel", shape=(2, 2), scope=None, value=1.0):
    with keras.name_scope(scope or "layer"):
        return keras.Variable(np.full(shape, value, "f4"), name=name)


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize("groups", [{}, None, "body", 3])
def test_no_groups_are_an_error(groups):
    assert message(lambda: GroupedOptimizer(groups)) == (
        f"`groups` maps names to pairs of an optimizer and what it updates. Received `{groups!r}`. Write "
        "`{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}`."
    )


@pytest.mark.parametrize("name", ["a/b", "", "my group", 3, "körper"])
def test_a_name_that_no_variable_could_have_is_an_error(name):
    assert message(lambda: GroupedOptimizer({name: (SGD(0.1), variable())})) == (
        f"A group's name consists of letters, digits, `_`, `-` and `.`. Received: `{name}`. Rename the group."
    )


@pytest.mark.parametrize("name", ["name", "variables", "0", "_x", "-1", "a.b"])
def test_any_other_name_is_fine(name):
    v = variable()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = GroupedOptimizer({name: (Adam(schedule), v)})
    tf.function(lambda: optimizer.apply([tf.ones((2, 2))], [v])).get_concrete_function()
    assert list(optimizer.learning_rates) == [name]


@pytest.mark.parametrize("pair", [3, (SGD(0.1),), ("sgd", [1]), (SGD(0.1), [1], 2)], ids=range(4))
def test_a_group_that_is_not_a_pair_is_an_error(pair):
    assert message(lambda: GroupedOptimizer({"body": pair})) == (
        f"A group is a pair of a Keras optimizer and what it updates. Group `body` received `{pair!r}`. Write "
        "`{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}`."
    )


def test_a_shared_optimizer_is_an_error():
    one = SGD(0.1)
    assert message(lambda: GroupedOptimizer({"a": (one, variable()), "b": (one, variable())})) == (
        "Each group must have its own optimizer. Groups `a`, `b` share an optimizer. Create a new optimizer for each group."
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)),
        lambda: keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(SGD(0.1))),
        lambda: GroupedOptimizer({"inner": (SGD(0.1), variable())}),
    ],
)
def test_an_optimizer_of_optimizers_in_a_group_is_an_error(make):
    child = make()
    assert message(lambda: GroupedOptimizer({"body": (child, variable())})) == (
        f"A group's optimizer must be a plain Keras optimizer. Group `body` received a `{type(child).__name__}`, which contains "
        "others. Pass a plain optimizer; a `LossScaleOptimizer` goes around the `GroupedOptimizer`."
    )


@pytest.mark.parametrize(
    "setting",
    [{"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2}, {"loss_scale_factor": 2.0}, {"use_ema": True}],
    ids=str,
)
def test_a_setting_over_all_groups_on_one_of_them_is_an_error(setting):
    (name,) = setting
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1, **setting), variable())})) == (
        f"`{name}` acts on all groups together. Group `body` sets it on its own optimizer. Pass "
        f"`GroupedOptimizer({name}=...)` instead."
    )


def used_before():
    made = SGD(0.1)
    made.build([variable()])
    return made


def in_another():
    made = SGD(0.1)
    GroupedOptimizer({"other": (made, variable())})
    return made


@pytest.mark.parametrize("make", [used_before, in_another])
def test_an_optimizer_used_before_is_an_error(make):
    child = make()
    assert message(lambda: GroupedOptimizer({"body": (child, variable())})) == (
        "A group's optimizer must be new. The `SGD` of group `body` already belongs to other variables or to another "
        "`GroupedOptimizer`. Make a new one."
    )


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_rate_that_is_not_a_positive_number_is_an_error(rate):
    text = message(lambda: GroupedOptimizer({"body": (SGD(rate), variable())}))
    assert text.startswith("the learning rate of group `body` must be a finite number above 0.")
