"""A bounded sample of what `scripts/fuzz.py` runs for hours: no input is answered by anything but a result or a reason."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fuzz
from fuzz_inputs import CHEAP, Case, make_pristine


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "pristine"
    make_pristine(folder)
    return folder


def faults(records):
    return [(r["number"], r["faults"], r["arguments"], r["message"]) for r in records if r["faults"]]


def test_some_inputs_of_cheap_commands_have_no_fault(pristine):
    records = list(fuzz.run_here(2026, range(150), CHEAP, pristine))
    assert faults(records) == []
    outcomes = [record["outcome"] for record in records]
    assert outcomes.count("refused") > 25
    assert outcomes.count("finished") > 25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_some_inputs_of_commands_that_build_the_model_have_no_fault(pristine):
    records = list(fuzz.run_here(2026, range(20), ("plan", "data"), pristine))
    assert faults(records) == []


def test_an_internal_error_and_a_refusal_without_a_place_are_faults(pristine, tmp_path, monkeypatch):
    from finetune.commands import check
    from finetune.errors import DataError

    case = Case(["check", "recipe.yaml"], "x: 1\n")
    case.write(pristine, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    assert fuzz.run_case(case)["outcome"] == "refused"
    assert fuzz.run_case(case)["faults"] == []

    def fails(*args, error, **options):
        raise error

    for error, outcome, fault in [
        (KeyError("x"), "internal", ["internal"]),
        (DataError("Something is wrong."), "refused", ["no place"]),
        (DataError("recipe.yaml:3:1: Something is wrong."), "refused", []),
        (DataError("The file `recipe.yaml` is damaged."), "refused", []),
    ]:
        monkeypatch.setattr(check, "check", lambda *args, error=error, **options: fails(error=error))
        record = fuzz.run_case(case)
        assert (record["outcome"], record["faults"]) == (outcome, fault)


def test_an_option_is_a_place_if_it_was_typed_and_not_if_it_is_advised():
    case = Case(["lr-range", "recipe.yaml", "--steps", "1"], "")
    assert fuzz.has_place("A sweep needs at least 30 `--steps`. Received: 1.", case)
    assert not fuzz.has_place("A sweep needs at least 30 `steps`. Received: 1. Add `--overwrite`.", case)
    assert fuzz.has_place("Usage: finetune\n\nError: No such option: --x", case)
    assert fuzz.has_place("--set train.epochs=0:1:1: `train.epochs` must be 1 or more.", case)


def test_the_time_of_a_process_is_that_of_the_processor():
    before = fuzz.processor_seconds(os.getpid())
    time.sleep(0.3)
    assert fuzz.processor_seconds(os.getpid()) - before < 0.2
    assert fuzz.processor_seconds(2**22 + 1) == 0.0


def test_a_session_goes_on_where_it_stopped_and_the_table_has_a_row_for_each_command(tmp_path):
    out = tmp_path / "session"
    fuzz.fuzz(1, 3, ("keys", "check"), out)
    assert [record["number"] for record in fuzz._read(out)] == [0, 1, 2]
    fuzz.fuzz(1, 5, ("keys", "check"), out)
    records = fuzz._read(out)
    assert [record["number"] for record in records] == [0, 1, 2, 3, 4]
    lines = fuzz.table(records).splitlines()
    assert lines[0].startswith("| command | inputs | finished | refused | failed | internal | traceback | hang | crash")
    assert lines[-1].startswith("| all | 5 |")
    assert lines[-1].endswith("| 0 | 0 | 0 | 0 | 0 |")
