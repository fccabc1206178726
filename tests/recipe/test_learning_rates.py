import math

import pytest

from finetune.recipe.fields import Length, length_of
from finetune.recipe.learning_rates import SCHEDULES, read_schedule


def test_every_schedule_is_read_by_its_name(schedule):
    assert all(schedule(name).schedule == name for name in SCHEDULES)


def test_the_defaults_are_those_of_keras_and_of_the_papers(schedule):
    polynomial = schedule("polynomial_decay")
    assert (polynomial.end, polynomial.power, polynomial.cycle) == (1e-4, 1.0, False)
    restarts = schedule("cosine_decay_restarts")
    assert (restarts.t_mul, restarts.m_mul, restarts.alpha) == (2.0, 1.0, 0.0)
    assert (schedule("slanted_triangular").cut_fraction, schedule("slanted_triangular").ratio) == (0.1, 32)
    one_cycle = schedule("one_cycle")
    assert (one_cycle.warmup_fraction, one_cycle.div, one_cycle.final_div) == (0.25, 25.0, 1e5)
    assert schedule("exponential_decay").staircase is False


@pytest.mark.parametrize("name", ["slanted_triangular", "one_cycle", "warmup_stable_decay"])
def test_these_last_the_whole_run_by_default(name, schedule):
    assert length_of(schedule(name), "total") == Length(1.0, "fraction")
    assert length_of(schedule(name, total_epochs=2), "total") == Length(2.0, "epochs")


@pytest.mark.parametrize(
    "changes", [{"decay_steps": 0}, {"decay_steps": ..., "decay_fraction": 1.5}, {"alpha": 2}, {"initial": 0}]
)
def test_bounds_are_held(changes, schedule_faults):
    assert schedule_faults("cosine_decay", **changes)[0] in ("greater_than", "greater_than_equal", "less_than_equal")


def test_a_chain_holds_schedules_of_any_kind(schedule):
    inner = {"schedule": "chain", "schedules": [{"schedule": "constant", "initial": 1.0}] * 2, "boundaries": [5]}
    chain = schedule("chain", schedules=[{"schedule": "one_cycle", "peak": 1.0}, inner])
    assert [part.schedule for part in chain.schedules] == ["one_cycle", "chain"]


def test_only_schedules_of_one_rate_take_another(schedule):
    assert {name for name, model in SCHEDULES.items() if not model.rate_field} == {"chain", "piecewise_constant_decay"}
    assert schedule("one_cycle").with_rate(0.5).peak == 0.5
    assert schedule("constant").with_rate(0.5).initial == 0.5


def test_an_unknown_schedule_is_offered_the_nearest():
    with pytest.raises(ValueError, match="fault") as caught:
        read_schedule({"schedule": "cosine"})
    assert caught.value.context["predicate"] == (
        'is not a known value. Received: `"cosine"`. Did you mean `cosine_decay`?'
    )


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf, "fast", True, [1e-3], 10**400])
def test_a_learning_rate_is_a_finite_number_above_zero(complaint, rate):
    [said] = complaint("groups", 1, "learning_rate", to=rate)
    assert said.startswith("`groups.head.learning_rate` must be ")
