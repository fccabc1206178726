import pytest
from pydantic import TypeAdapter
from pydantic_core import PydanticCustomError

from finetune.recipe.phase_spec import PhaseSpec
from finetune.recipe.phase_strategies import STRATEGIES, phases_block, written_out
from finetune.recipe.phases import Phases
from finetune.recipe.text import parse

PEAKS = {"stem": 4e-3, "body": 5e-3, "head": 1e-2}


def expand(phases, epochs=None, peaks=PEAKS):
    return written_out(TypeAdapter(Phases).validate_python(phases), peaks, epochs)


def plain(phases):
    return [phase.model_dump() for phase in phases]


def by_hand(*phases):
    return plain(map(PhaseSpec.model_validate, phases))


def triangle(peak):
    return {
        "schedule": "slanted_triangular",
        "peak": pytest.approx(peak),
        "total_fraction": 1.0,
        "cut_fraction": 0.1,
        "ratio": 32.0,
    }


def cycle(peak, **more):
    full = {"warmup_fraction": 0.25, "div": 25.0, "final_div": 1e5, **more}
    return {"schedule": "one_cycle", "peak": pytest.approx(peak), "total_fraction": 1.0, **full}


def test_gradual_unfreezing_is_one_group_more_per_epoch_last_to_first_each_at_1_over_2_point_6_of_the_next():
    found = plain(expand({"strategy": "gradual_unfreezing", "epochs": 4}))
    rates = {"head": triangle(1e-2), "body": triangle(1e-2 / 2.6), "stem": triangle(1e-2 / 2.6**2)}
    assert found == [
        {"train": ("head",), "epochs": 1, "rates": {"head": rates["head"]}, "clock": "phase"},
        {"train": ("body", "head"), "epochs": 1, "rates": {k: rates[k] for k in ("body", "head")}, "clock": "phase"},
        {"train": ("stem", "body", "head"), "epochs": 4, "rates": rates, "clock": "phase"},
    ]


def test_freeze_then_all_has_the_ratios_of_fine_tune_in_fastai():
    first, second = plain(expand({"strategy": "freeze_then_all", "epochs": 3, "peak": 2e-3}))
    assert first == {
        "train": ("head",), "epochs": 1, "rates": {"head": cycle(2e-3, warmup_fraction=0.99)}, "clock": "phase",
    }  # fmt: skip
    assert (second["train"], second["epochs"], second["clock"]) == ("all", 3, "phase")
    shape = {"warmup_fraction": 0.3, "div": 5.0}
    assert second["rates"] == {"stem": cycle(1e-5, **shape), "body": cycle(1e-4, **shape), "head": cycle(1e-3, **shape)}


def test_lp_ft_is_the_last_group_then_all_at_their_own_rates():
    assert plain(expand({"strategy": "lp_ft", "epochs": 3})) == by_hand(
        {"train": ["head"], "epochs": 3, "clock": "phase"}, {"train": "all", "epochs": 3, "clock": "phase"}
    )
    assert [phase.epochs for phase in expand("lp_ft", epochs=7)] == [3, 4]


def test_chain_thaw_is_the_newest_then_each_alone_first_to_last_then_all():
    found = expand({"strategy": "chain_thaw", "epochs": 2, "patience": 5})
    assert [phase.train for phase in found] == [("head",), ("stem",), ("body",), "all"]
    assert [phase.epochs for phase in found] == [1, 1, 1, 2]
    assert {phase.until.patience for phase in found} == {5}


@pytest.mark.parametrize(("which", "name"), [("first", "stem"), ("middle", "body"), ("last", "head")])
def test_surgical_trains_one_group_alone(which, name):
    assert plain(expand({"strategy": "surgical", "train": which, "epochs": 2})) == by_hand(
        {"train": [name], "epochs": 2}
    )


def test_auto_rgn_trains_all_and_its_peak_is_the_highest_rate_of_the_groups():
    assert plain(expand("auto_rgn", epochs=3)) == by_hand({"train": "all", "epochs": 3, "auto_rgn": 1e-2})


def test_a_short_form_shares_the_epochs_of_the_run():
    assert [phase.epochs for phase in expand("gradual_unfreezing", epochs=9)] == [1, 1, 7]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "surgical"])
def test_one_group_is_enough_for_every_strategy(name):
    assert sum(phase.epochs for phase in expand(name, epochs=6, peaks={"all": 1e-3})) == 6


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "surgical"])
def test_a_strategy_printed_and_pasted_back_is_the_list_it_stands_for(name):
    phases = expand(name, epochs=12)
    problems = []
    read = parse(phases_block(phases), lambda line, column: None, problems).plain()["phases"]
    assert not problems
    assert TypeAdapter(Phases).validate_python(read) == phases


def test_a_strategy_that_cannot_know_its_length_says_how_to_give_one():
    with pytest.raises(PydanticCustomError) as caught:
        expand("gradual_unfreezing")
    assert "does not say how long its last phase is. Give it `epochs`" in caught.value.context["predicate"]
    with pytest.raises(PydanticCustomError) as caught:
        expand("gradual_unfreezing", epochs=1)
    assert "needs 1 epochs before its last phase, and `train.epochs` is 1" in caught.value.context["predicate"]


@pytest.mark.parametrize(
    ("groups", "epochs", "per_group", "entered"),
    [
        (18, 4, 1, [1, 7, 13, 18]),  # more groups than epochs: as evenly as can be
        (3, 2, 1, [1, 3]),
        (3, 9, 1, [1, 2, 3]),
        (5, 7, 2, [1, 3, 4, 5]),  # two epochs for each of the first three phases, one for the last
        (1, 3, 1, [1]),
    ],
)
def test_several_groups_enter_at_once_where_the_run_has_fewer_epochs_than_groups(groups, epochs, per_group, entered):
    peaks = {f"g{n}": 1.0 for n in range(groups)}
    phases = expand({"strategy": "gradual_unfreezing", "epochs_per_group": per_group}, epochs, peaks)
    assert [len(phase.train) for phase in phases] == entered
    assert sum(phase.epochs for phase in phases) == epochs
    assert {name: rate.peak for name, rate in phases[-1].rates.items()} == pytest.approx(
        {f"g{n}": 2.6 ** (n - groups + 1) for n in range(groups)}
    )
