"""The state of an optimizer in a file is looked at before any of it is taken over."""

import copy

import keras
import pytest

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.saved_shape import fault_in_state


@pytest.fixture(scope="module")
def written():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")])
    first, second = model.layers
    optimizer = GroupedOptimizer(
        {"a": (keras.optimizers.SGD(schedule), [first]), "b": (keras.optimizers.Adam(0.1), [second])}
    )
    optimizer.build(model.trainable_variables)
    optimizer.reschedule("b", keras.optimizers.schedules.CosineDecay(0.1, 9), warmup_steps=3)
    return optimizer.saved_state.document()


def test_what_an_optimizer_writes_and_an_older_file_without_it_have_no_fault(written):
    assert fault_in_state(written) == ""
    assert fault_in_state(None) == ""


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("groups",), [], "`groups` must be a mapping"),
        (("groups", "a", "start"), "x", "`groups.a.start` must be a whole number from 0 on"),
        (("groups", "a", "start"), 2**70, "`groups.a.start` must be a whole number from 0 on"),
        (("groups", "b", "scale"), float("nan"), "`groups.b.scale` must be a finite number, and is NaN"),
        (("groups", "b", "base"), None, "`groups.b.base` must be a finite number, and is null"),
        (("groups", "b", "follows", "since"), [], "`groups.b.follows.since` must be"),
        (("groups", "b", "follows", "schedule"), {"rate": 1.0}, "`groups.b.follows.schedule` must say which"),
        (("groups", "b", "follows", "schedule"), {"rate": 1.0, "initial": True}, "must say which schedule it is"),
        (("groups", "b", "follows", "schedule", "samples"), [[1]], "samples.0` must be a list of 2 values"),
        (("phase",), {"number": 0, "epoch": 0, "step": 0}, "`phase.number` must be a whole number from 1 on, and is 0"),
        (("phase",), {"number": 1, "epoch": 0}, "`phase.step` is missing"),
        (("phase",), {"number": 1, "epoch": 0, "step": 0, "x": 1}, "`phase.x` is none of `number`, `epoch`, `step`"),
    ],
)
def test_a_value_that_was_changed_is_named(written, path, value, message):
    document = copy.deepcopy(written)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert message in fault_in_state(document)
    assert "`model.optimizer." in fault_in_state(document, "model.optimizer")
