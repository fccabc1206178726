"""The grid of layers and variants: it resumes, counts, names what differs, and its exit code says so."""

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Layer '.*_flat' .* does not support masking:UserWarning"),
]


@pytest.fixture(scope="module")
def grid(script):
    return script("keras_grid")


@pytest.mark.grid
def test_it_trains_a_layer_and_keeps_what_is_done(grid, tmp_path, capsys):
    state = tmp_path / "grid.json"
    asked = ["--only", "GlobalAveragePooling1D", "--variant", "plain", "--state", str(state)]
    assert grid.main(asked) == 0
    done = json.loads(state.read_text())
    assert done["plain GlobalAveragePooling1D"] == "same"
    assert "plain: 1 tried; 1 same" in capsys.readouterr().out

    state.write_text(json.dumps({**done, "masked GlobalAveragePooling1D": "fast DIFFERS: all/kernel differs by 1"}))
    assert grid.main([*asked, "--variant", "masked"]) == 1, "what is done is not run again"
    printed = capsys.readouterr().out
    assert "masked: 1 tried; 1 fast DIFFERS" in printed
    assert "  GlobalAveragePooling1D: fast DIFFERS: all/kernel differs by 1" in printed


@pytest.mark.grid
def test_a_layer_is_the_same_with_a_mask_and_compiled_by_xla(grid, tmp_path):
    asked = ["--only", "GlobalAveragePooling1D", "--variant", "masked", "--variant", "jit_compile"]
    assert grid.main([*asked, "--state", str(tmp_path / "grid.json")]) == 0
    done = json.loads((tmp_path / "grid.json").read_text())
    assert done["masked GlobalAveragePooling1D"] == "same"
    assert done["jit_compile GlobalAveragePooling1D"] == "same, by Keras' own loop: XLA compiles its step"


def test_what_is_wrong_with_some_layers_is_found_by_trying_each_alone(grid, monkeypatch):
    tried = []

    def compared(cases, variant):
        tried.append([case.name for case in cases])
        if any(case.name == "ELU" for case in cases):
            raise ValueError("no exponent")
        return "same"

    monkeypatch.setattr(grid, "_compared", compared)
    cases = [case for case in grid.layer_cases() if case.name in ("Dense", "ELU")]
    assert grid.outcomes(cases, "plain") == {"Dense": "same", "ELU": "not by Keras itself: no exponent"}
    assert tried == [["Dense", "ELU"], ["Dense"], ["ELU"]]


def test_ragged_and_masked_inputs_are_for_the_layers_that_take_them(grid):
    of = {
        case.name: grid.variants_of(case.kind)
        for case in grid.layer_cases()
        if case.name in ("GRU", "Conv2D", "Embedding")
    }
    assert "masked" in of["GRU"]
    assert "ragged" not in of["GRU"]
    assert {"masked", "ragged"} <= {*of["Embedding"]}
    assert not {"masked", "ragged"} & {*of["Conv2D"]}
