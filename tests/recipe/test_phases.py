"""Phases and groups of a recipe must agree, whichever of the two is wrong."""

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from finetune.recipe.phase_spec import PhaseSpec
from finetune.recipe.phases import Phases, check_names, disagreement

GROUPS = {"stem": True, "body": False, "head": False}  # whether it is frozen in all phases


def phases(*written):
    return [PhaseSpec.model_validate(phase) for phase in written]


def fault_of(*written):
    with pytest.raises(PydanticCustomError) as caught:
        check_names(phases(*written), GROUPS)
    return caught.value.context["at"], caught.value.context["predicate"]


def test_phases_that_train_every_group_that_is_not_frozen_are_accepted():
    check_names(phases({"train": "head", "epochs": 1}, {"train": "all", "epochs": 1}), GROUPS)


@pytest.mark.parametrize(
    ("phase", "at", "predicate"),
    [
        ({"train": ["hed"]}, (0, "train", 0), "does not name a group. Received: `hed`. Did you mean `head`?"),
        (
            {"train": "all", "rates": {"x": 1.0}},
            (0, "rates", "x"),
            "does not name a group. Received: `x`. The groups are",
        ),
        ({"train": ["stem"]}, (0, "train", 0), "names `stem`, which is frozen in all phases. Write `frozen: false`"),
        ({"train": ["head"]}, (), "never trains `body`. Add a phase that does"),
    ],
)
def test_a_name_that_does_not_fit_is_an_error_at_its_place(phase, at, predicate):
    place, text = fault_of({**phase, "epochs": 1})
    assert (place, text[: len(predicate)]) == (at, predicate)


def test_a_mode_of_batch_normalization_may_be_set_in_a_frozen_group():
    check_names(phases({"train": "all", "epochs": 1, "batch_norm": {"stem": "statistics"}}), GROUPS)


def test_epochs_of_train_must_be_those_of_the_phases_together():
    both = phases({"train": "head", "epochs": 1}, {"train": "all", "epochs": 2})
    assert disagreement(both, None) is None
    assert disagreement(both, 3) is None
    assert disagreement(both, 4).context["predicate"] == (
        "is 4, and `phases` last 3 epochs together. Remove it: the phases say how long"
    )
    in_steps = phases({"train": "all", "steps": 5})
    assert "give their length in steps" in disagreement(in_steps, 4).context["predicate"]


@pytest.mark.parametrize("value", [[], 3])
def test_something_that_is_neither_a_list_nor_a_strategy_is_an_error(value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Phases).validate_python(value)
    assert caught.value.errors()[0]["ctx"]["predicate"].startswith("must be a list of phases, or a strategy such as")
