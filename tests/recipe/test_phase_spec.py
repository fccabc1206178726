"""A single phase of a recipe: what it trains, how long, at which rates, and what ends it."""

import pytest
from pydantic import ValidationError

from finetune.recipe.fields import Length
from finetune.recipe.phase_spec import PhaseSpec


def phase(**keys):
    return PhaseSpec.model_validate({"train": "all", "epochs": 1, **keys})


def errors(**keys):
    with pytest.raises(ValidationError) as caught:
        phase(**keys)
    return caught.value.errors()


def predicate(**keys):
    [error] = errors(**keys)
    return error["ctx"]["predicate"]


@pytest.mark.parametrize(
    ("written", "trained"), [("all", "all"), ("head", ("head",)), (["stem", "head"], ("stem", "head"))]
)
def test_a_phase_trains_all_groups_or_those_that_it_names(written, trained):
    assert phase(train=written).train == trained


@pytest.mark.parametrize("written", [[], "", 3, None, ["head", ""], [["head"]]])
def test_anything_but_names_of_groups_is_an_error(written):
    assert errors(train=written)[0]["ctx"]["predicate"].startswith("must be names of groups, or `all`. Received: ")


def test_the_length_is_given_in_exactly_one_unit():
    assert (phase().epochs, phase(epochs=None, steps=7).steps) == (1, 7)
    assert predicate(steps=7) == "needs exactly one of `epochs`, `steps`. Received: `epochs`, `steps`"
    assert predicate(epochs=None) == "needs exactly one of `epochs`, `steps`. All are missing"


@pytest.mark.parametrize(("key", "amount"), [("steps", 5), ("epochs", 0.5), ("fraction", 1.0)])
def test_a_warm_up_has_three_spellings_and_may_be_absent(key, amount):
    assert phase(**{f"warmup_{key}": amount}).warmup == Length(amount, key)
    assert phase().warmup is None


def test_only_one_spelling_of_the_warm_up_may_be_used():
    assert predicate(warmup_steps=5, warmup_fraction=0.5) == (
        "takes at most one of `warmup_steps`, `warmup_epochs`, `warmup_fraction`. "
        "Received: `warmup_steps`, `warmup_fraction`"
    )


@pytest.mark.parametrize("keys", [{"warmup_fraction": 1.5}, {"warmup_steps": 0}, {"epochs": 0}, {"auto_rgn": 0.0}])
def test_lengths_and_rates_keep_their_bounds(keys):
    assert errors(**keys)[0]["type"] in ("less_than_equal", "greater_than_equal", "greater_than")


def test_rates_are_numbers_or_schedules_by_group():
    rates = phase(rates={"stem": 1e-5, "head": {"schedule": "one_cycle", "peak": 1e-3}}).rates
    assert (rates["stem"], rates["head"].schedule, rates["head"].peak) == (1e-5, "one_cycle", 1e-3)


def test_rates_that_are_measured_cannot_be_set_as_well():
    assert phase(auto_rgn=1e-3).auto_rgn == 1e-3
    assert predicate(auto_rgn=1e-3, rates={"head": 1e-3}) == (
        "measures the rates, and `rates` sets them. Remove one of the two"
    )


def test_schedules_count_the_run_by_default_or_the_phase():
    assert (phase().clock, phase(clock="phase").clock) == ("run", "phase")
    assert predicate(clock="epoch") == 'is not a known value. Received: `"epoch"`. Choose from `run`, `phase`.'


def test_batch_normalization_has_a_mode_for_all_groups_or_for_some():
    assert phase(batch_norm="freeze").batch_norm == "freeze"
    assert phase(batch_norm={"stem": "statistics", "head": "train"}).batch_norm == {
        "stem": "statistics",
        "head": "train",
    }


def test_an_unknown_mode_of_batch_normalization_has_the_place_of_its_group():
    [error] = errors(batch_norm={"stem": "freze"})
    assert error["ctx"]["at"] == ("stem",)
    assert error["ctx"]["predicate"] == 'is not a known value. Received: `"freze"`. Did you mean `freeze`?'


def test_a_phase_may_end_early_or_lower_its_rates_by_the_validation_loss():
    until = phase(until={"patience": 3, "restore_best": True}).until
    assert (until.monitor, until.patience, until.min_delta, until.mode) == ("val_loss", 3, 0.0, "auto")
    plateau = phase(reduce_on_plateau={}).reduce_on_plateau
    # The defaults of `keras.callbacks.ReduceLROnPlateau`.
    assert (plateau.monitor, plateau.factor, plateau.patience) == ("val_loss", 0.1, 10)
    assert (plateau.min_delta, plateau.cooldown) == (1e-4, 0)


@pytest.mark.parametrize("factor", [0, 1, 1.5])
def test_the_factor_on_a_plateau_lowers_the_rates(factor):
    assert errors(reduce_on_plateau={"factor": factor})[0]["loc"] == ("reduce_on_plateau", "factor")


def test_a_phase_is_dumped_with_what_was_set_and_with_its_clock():
    dumped = {"train": ("head",), "epochs": 1, "clock": "run", "warmup_steps": 3}
    assert phase(train="head", warmup_steps=3).model_dump() == dumped
