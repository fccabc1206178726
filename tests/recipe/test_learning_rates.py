import math

import pytest
from pydantic import ValidationError

from finetune.recipe.fields import Length, length_of
from finetune.recipe.learning_rates import SCHEDULES, read_schedule

DECAY = {"initial": 1e-3, "decay_steps": 100}
SHORTEST = {
    "exponential_decay": {**DECAY, "decay_rate": 0.96},
    "natural_exponential_decay": {**DECAY, "decay_rate": 0.96},
    "inverse_time_decay": {**DECAY, "decay_rate": 0.96},
    "polynomial_decay": DECAY,
    "piecewise_constant_decay": {"boundaries": [10, 20], "values": [1.0, 0.5, 0.1]},
    "cosine_decay": DECAY,
    "cosine_decay_restarts": {"initial": 1e-3, "first_decay_steps": 10},
    "inverse_square_root": {"peak": 1e-3, "warmup_steps": 10},
    "slanted_triangular": {"peak": 1e-3},
    "one_cycle": {"peak": 1e-3},
    "warmup_stable_decay": {"peak": 1e-3},
    "constant": {"initial": 1e-3},
    "chain": {"schedules": [{"schedule": "constant", "initial": 1.0}] * 2, "boundaries": [5]},
}


def read(name, **changes):
    fields = {key: value for key, value in (SHORTEST[name] | changes).items() if value is not ...}
    return read_schedule({"schedule": name, **fields})


def faults(name, **changes):
    with pytest.raises(ValidationError) as caught:
        read(name, **changes)
    return [error.get("ctx", {}).get("predicate", error["type"]) for error in caught.value.errors()]


def test_every_schedule_is_read_by_its_name():
    assert set(SHORTEST) == set(SCHEDULES)
    assert all(read(name).schedule == name for name in SCHEDULES)


def test_the_defaults_are_those_of_keras_and_of_the_papers():
    polynomial = read("polynomial_decay")
    assert (polynomial.end, polynomial.power, polynomial.cycle) == (1e-4, 1.0, False)
    restarts = read("cosine_decay_restarts")
    assert (restarts.t_mul, restarts.m_mul, restarts.alpha) == (2.0, 1.0, 0.0)
    assert (read("slanted_triangular").cut_fraction, read("slanted_triangular").ratio) == (0.1, 32)
    one_cycle = read("one_cycle")
    assert (one_cycle.warmup_fraction, one_cycle.div, one_cycle.final_div) == (0.25, 25.0, 1e5)
    assert read("exponential_decay").staircase is False


@pytest.mark.parametrize(("key", "amount"), [("decay_steps", 7), ("decay_epochs", 1.5), ("decay_fraction", 0.5)])
def test_a_length_has_three_spellings(key, amount):
    schedule = read("cosine_decay", **{"decay_steps": ..., key: amount})
    assert length_of(schedule, "decay") == Length(amount, key.removeprefix("decay_"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("cosine_decay", "decay"), ("cosine_decay_restarts", "first_decay"), ("inverse_square_root", "warmup")],
)
def test_exactly_one_spelling_is_taken(name, stem):
    spellings = f"`{stem}_steps`, `{stem}_epochs`, `{stem}_fraction`"
    assert faults(name, **{f"{stem}_steps": ...}) == [f"needs exactly one of {spellings}. All are missing"]
    received = f"`{stem}_steps`, `{stem}_fraction`"
    assert faults(name, **{f"{stem}_fraction": 0.5}) == [f"needs exactly one of {spellings}. Received: {received}"]


@pytest.mark.parametrize("name", ["slanted_triangular", "one_cycle", "warmup_stable_decay"])
def test_these_last_the_whole_run_by_default(name):
    assert length_of(read(name), "total") == Length(1.0, "fraction")
    assert length_of(read(name, total_epochs=2), "total") == Length(2.0, "epochs")


@pytest.mark.parametrize(
    "changes", [{"decay_steps": 0}, {"decay_steps": ..., "decay_fraction": 1.5}, {"alpha": 2}, {"initial": 0}]
)
def test_bounds_are_held(changes):
    assert faults("cosine_decay", **changes)[0] in ("greater_than", "greater_than_equal", "less_than_equal")


def test_a_warm_up_can_go_in_front_of_every_schedule_but_those_that_have_their_own():
    own = {"inverse_square_root", "one_cycle", "warmup_stable_decay"}
    for name in set(SCHEDULES) - own:
        assert read(name).leading_warmup is None
        assert read(name, warmup_epochs=1, warmup_from=0.1).leading_warmup == Length(1.0, "epochs")
    assert all(read(name).leading_warmup is None for name in own)


def test_where_a_warm_up_starts_means_nothing_without_one():
    [said] = faults("constant", warmup_from=0.5)
    assert said == "sets the rate at which a warm-up starts, but there is no warm-up. Add its length as `warmup_steps`"


def test_boundaries_grow_and_leave_one_value_more():
    assert read("piecewise_constant_decay").switches == (Length(10, "steps"), Length(20, "steps"))
    epochs = read("piecewise_constant_decay", boundaries=..., boundaries_epochs=[1, 2.5])
    assert epochs.switches == (Length(1.0, "epochs"), Length(2.5, "epochs"))
    assert faults("piecewise_constant_decay", boundaries=[20, 10])[0].startswith(
        "must be a list in which every entry is larger"
    )
    assert faults("piecewise_constant_decay", boundaries=[])[0].startswith(
        "must be a list in which every entry is larger"
    )
    count = "needs 3 entries, one more than there are boundaries. Received: 2"
    assert faults("piecewise_constant_decay", values=[1.0, 0.5]) == [count]
    assert faults("chain", boundaries=[5, 10]) == [count]
    assert faults("chain", boundaries=...)[0].startswith("needs exactly one of `boundaries`, `boundaries_epochs`")


def test_a_chain_holds_schedules_of_any_kind():
    inner = {"schedule": "chain", **SHORTEST["chain"]}
    chain = read("chain", schedules=[{"schedule": "one_cycle", "peak": 1.0}, inner])
    assert [part.schedule for part in chain.schedules] == ["one_cycle", "chain"]


def test_only_schedules_of_one_rate_take_another():
    assert {name for name, model in SCHEDULES.items() if not model.rate_field} == {"chain", "piecewise_constant_decay"}
    assert read("one_cycle").with_rate(0.5).peak == 0.5
    assert read("constant").with_rate(0.5).initial == 0.5


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
