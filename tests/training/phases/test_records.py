"""What is printed when a phase begins, and what `result.json` holds of it."""

from dataclasses import replace

import pytest

from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.freezing import phase_state
from finetune.training.phases.phase import Phase
from finetune.training.phases.records import PhaseRecord, PhaseStart


@pytest.mark.parametrize(
    ("length", "words"),
    [({"epochs": 1}, "1 epoch"), ({"epochs": 3}, "3 epochs"), ({"steps": 1}, "1 step"), ({"steps": 20}, "20 steps")],
)
def test_the_line_of_a_phase_says_who_trains_how_much_and_how_long(tiny, length, words):
    model = tiny()
    groups = resolve_groups(model, [Selector("all", rest=True)])
    phase = Phase(**length)
    start = PhaseStart(2, 3, phase, ("body", "head"), 1200, 34000, 4, phase_state(model, groups))
    assert str(start) == f"phase 2/3: train body, head (1,200 of 34,000 parameters), {words}"
    many = replace(start, train=("a", "b", "c", "d", "e"))
    assert str(many) == f"phase 2/3: train a ... e (5) (1,200 of 34,000 parameters), {words}"


def test_a_record_in_json_says_whether_all_frozen_tensors_are_unchanged():
    fields = {"number": 1, "train": ("head",), "epochs": 2, "epochs_left": 0, "steps": 6, "parameters": 27}
    record = PhaseRecord(**fields, frozen_tensors=8, frozen_changed=(), seconds=1.5)
    assert record.to_json() == {
        **fields, "frozen_tensors": 8, "frozen_changed": (), "seconds": 1.5, "frozen_unchanged": True, "keras_loop": None,
    }  # fmt: skip
    changed = PhaseRecord(**fields, frozen_tensors=8, frozen_changed=("bn/gamma",), seconds=1.5)
    assert changed.to_json()["frozen_unchanged"] is False
