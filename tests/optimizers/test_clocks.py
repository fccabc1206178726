"""Groups that enter late start like fresh ones."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.group import Group
from finetune.optimizers.grouped import GroupedOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
optimizers = keras.optimizers
MAKE = {
    "adam": lambda: optimizers.Adam(0.1),
    "adamw": lambda: optimizers.AdamW(0.1),
    "adamax": lambda: optimizers.Adamax(0.1),
    "nadam": lambda: optimizers.Nadam(0.1),
    "lamb": lambda: optimizers.Lamb(0.1),
    "adafactor": lambda: optimizers.Adafactor(0.1),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "schedule_free": lambda: optimizers.ScheduleFreeAdamW(0.1),
}


def variables(number=4, shape=(5, 3)):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.standard_normal(shape).astype("f4"), name=f"v{i}") for i in range(number)]


def gradients(step, number=4, shape=(5, 3)):
    rng = np.random.default_rng([1, step])
    return [tf.constant(rng.standard_normal(shape).astype("f4")) for _ in range(number)]


def steps(optimizer, trained, first, last, of=slice(None)):
    for step in range(first, last):
        optimizer.apply(gradients(step)[of], trained[of])


@pytest.mark.sample(9)
@pytest.mark.parametrize("fused", ["auto", "on", "off"])
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.slow
def test_a_group_that_enters_goes_as_if_a_fresh_optimizer_trained_it(name, fused):
    ours, theirs = variables(), variables()
    optimizer = GroupedOptimizer({"body": (MAKE[name](), ours[:2]), "head": (MAKE[name](), ours[2:])}, fused=fused)
    steps(optimizer, ours, 0, 3)
    for mine, other in zip(ours, theirs, strict=True):
        other.assign(mine)
    optimizer.restart(["body"])
    steps(optimizer, ours, 3, 7)
    fresh = MAKE[name]()
    steps(fresh, theirs, 3, 7, slice(2))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=2e-7)
    alone, head = MAKE[name](), variables()
    steps(alone, head, 0, 7, slice(2, 4))
    for mine, other in zip(ours[2:], head[2:], strict=True):  # who stays goes on
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=2e-7)


@pytest.mark.grid
@pytest.mark.slow
def test_without_it_the_first_step_of_adam_is_far_too_large():
    def first_step(restart):
        ours = variables()
        optimizer = GroupedOptimizer(
            {"body": (optimizers.Adam(0.1), ours[:2]), "head": (optimizers.Adam(0.1), ours[2:])}
        )
        steps(optimizer, ours, 0, 400, slice(2, 4))
        if restart:
            optimizer.restart(["body"])
        before = ours[0].numpy()
        steps(optimizer, ours, 400, 401)
        return np.abs(ours[0].numpy() - before).max()

    assert first_step(True) == pytest.approx(0.1, rel=1e-3)
    assert first_step(False) > 0.15


def test_gradients_that_were_being_accumulated_are_dropped():
    ours = variables()
    optimizer = GroupedOptimizer({"body": (optimizers.SGD(1.0), ours)}, gradient_accumulation_steps=2)
    before = ours[0].numpy()
    steps(optimizer, ours, 0, 1)
    optimizer.restart(["body"])
    steps(optimizer, ours, 1, 2)
    np.testing.assert_allclose(ours[0], before - gradients(1)[0] / 2, rtol=1e-6)


def test_clocks_survive_a_file_and_a_file_without_them_counts_from_the_first_step(tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(3, name="head")]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(GroupedOptimizer({x.name: (optimizers.Adam(0.1), x) for x in layers}), "mse")
        return model

    def train(model):
        model.fit(np.ones((4, 3), "f4"), np.ones((4, 3), "f4"), verbose=0)
        return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]

    model = make()
    train(model)
    model.optimizer.restart(["body"])
    model.save_weights(tmp_path / "with.weights.h5")
    model.make_train_function(force=True)
    expected = train(model)
    again = make()
    again.load_weights(tmp_path / "with.weights.h5")
    assert list(again.optimizer.variables[-1].numpy()) == [1, 0]
    for one, other in zip(train(again), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    old = {str(i): v.numpy() for i, v in enumerate(model.optimizer.variables[:-1])}
    again.optimizer.load_own_variables(old)
    assert list(again.optimizer.variables[-1].numpy()) == [0, 0]


def test_a_group_that_does_not_exist_is_an_error():
    optimizer = GroupedOptimizer({"body": (optimizers.Adam(0.1), variables())})
    with pytest.raises(GroupError, match=re.escape(
        "There is no group `boddy`. The groups are `body`. Did you mean `body`?"
    )):  # fmt: skip
        optimizer.restart(["boddy"])


def test_the_steps_at_which_groups_started_are_kept_as_whole_numbers_that_nobody_trains():
    optimizer = GroupedOptimizer([(optimizers.SGD(0.1), v) for v in variables(3)])
    starts = optimizer.variables[-1]
    assert (starts.name, starts.shape, starts.dtype, starts.trainable) == ("group_starts", (3,), "int64", False)


def test_a_group_that_started_with_the_training_keeps_the_shared_counter():
    trained = variables(2)
    optimizer = GroupedOptimizer(
        {"body": (optimizers.Adam(0.1), trained[0]), "head": (optimizers.Adam(0.1), trained[1])}
    )
    steps(optimizer, trained, 0, 3, slice(2))
    optimizer.restart(["body"])
    steps(optimizer, trained, 3, 5, slice(2))
    body, head = optimizer.group_optimizers.values()
    assert head.iterations is optimizer.iterations
    assert [int(tf.convert_to_tensor(child.iterations)) for child in (body, head)] == [2, 5]


def test_the_steps_of_groups_are_one_number_if_they_agree_and_else_a_number_each():
    groups = [Group(name, optimizers.Adam(0.1), [], []) for name in ("stem", "body", "head")]
    iterations = keras.Variable(5, dtype="int64")
    clocks = Clocks(groups, iterations)
    assert clocks.steps_of(groups) is iterations
    clocks.start(groups[1])
    iterations.assign(7)
    assert clocks.steps_of(groups[:1]) is iterations
    assert np.asarray(clocks.steps_of(groups[1:2])).tolist() == 2
    assert np.asarray(clocks.steps_of([groups[1]] * 3)).tolist() == 2
    assert np.asarray(clocks.steps_of(groups)).tolist() == [7, 2, 7]
    assert [clocks.is_first(group) for group in groups] == [True, False, True]
    assert np.asarray(tf.convert_to_tensor(groups[1].optimizer._iterations)).tolist() == 2
    assert np.asarray(groups[1].optimizer._iterations + 1).tolist() == 3


def test_the_steps_at_which_groups_started_are_whole_numbers_that_no_gradient_is_asked_of():
    clocks = Clocks([Group("body", optimizers.Adam(0.1), [], [])], keras.Variable(5, dtype="int64"))
    assert (clocks.starts.dtype, clocks.starts.trainable) == ("int64", False)
