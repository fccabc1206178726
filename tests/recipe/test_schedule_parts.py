import pytest

from finetune.recipe.fields import Length, length_of
from finetune.recipe.learning_rates import SCHEDULES


@pytest.mark.parametrize(("key", "amount"), [("decay_steps", 7), ("decay_epochs", 1.5), ("decay_fraction", 0.5)])
def test_a_length_has_three_spellings(key, amount, schedule):
    decay = schedule("cosine_decay", **{"decay_steps": ..., key: amount})
    assert length_of(decay, "decay") == Length(amount, key.removeprefix("decay_"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("cosine_decay", "decay"), ("cosine_decay_restarts", "first_decay"), ("inverse_square_root", "warmup")],
)
def test_exactly_one_spelling_is_taken(name, stem, schedule_faults):
    spellings = f"`{stem}_steps`, `{stem}_epochs`, `{stem}_fraction`"
    assert schedule_faults(name, **{f"{stem}_steps": ...}) == [f"needs exactly one of {spellings}. All are missing"]
    received = f"`{stem}_steps`, `{stem}_fraction`"
    assert schedule_faults(name, **{f"{stem}_fraction": 0.5}) == [
        f"needs exactly one of {spellings}. Received: {received}"
    ]


def test_a_warm_up_can_go_in_front_of_every_schedule_but_those_that_have_their_own(schedule):
    own = {"inverse_square_root", "one_cycle", "warmup_stable_decay"}
    for name in set(SCHEDULES) - own:
        assert schedule(name).leading_warmup is None
        assert schedule(name, warmup_epochs=1, warmup_from=0.1).leading_warmup == Length(1.0, "epochs")
    assert all(schedule(name).leading_warmup is None for name in own)


def test_where_a_warm_up_starts_means_nothing_without_one(schedule_faults):
    [said] = schedule_faults("constant", warmup_from=0.5)
    assert said == "sets the rate at which a warm-up starts, but there is no warm-up. Add its length as `warmup_steps`"


def test_boundaries_grow_and_leave_one_value_more(schedule, schedule_faults):
    assert schedule("piecewise_constant_decay").switches == (Length(10, "steps"), Length(20, "steps"))
    epochs = schedule("piecewise_constant_decay", boundaries=..., boundaries_epochs=[1, 2.5])
    assert epochs.switches == (Length(1.0, "epochs"), Length(2.5, "epochs"))
    assert schedule_faults("piecewise_constant_decay", boundaries=[20, 10])[0].startswith(
        "must be a list in which every entry is larger"
    )
    assert schedule_faults("piecewise_constant_decay", boundaries=[])[0].startswith(
        "must be a list in which every entry is larger"
    )
    count = "needs 3 entries, one more than there are boundaries. Received: 2"
    assert schedule_faults("piecewise_constant_decay", values=[1.0, 0.5]) == [count]
    assert schedule_faults("chain", boundaries=[5, 10]) == [count]
    assert schedule_faults("chain", boundaries=...)[0].startswith(
        "needs exactly one of `boundaries`, `boundaries_epochs`"
    )
