"""The arithmetic of the comparison of forecasts with runs."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "bench_forecast.py"
SPEC = importlib.util.spec_from_file_location("bench_forecast", PATH)
assert SPEC
assert SPEC.loader
bench_forecast = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench_forecast)


def measured(case, epoch, memory=2.0, load=1.0):
    forecast = {"phases": [{"epoch_seconds": 3.0}, {"epoch_seconds": 1.0}], "seconds": 30.0, "memory_bytes": 3.0}
    run = {"epoch_seconds": [epoch, epoch], "seconds": 20.0, "memory_bytes": memory}
    return {"case": case, "load": load, "forecast": forecast, "run": run}


def test_ratios_are_forecast_by_measurement_in_each_round():
    results = [measured("table", 4.0), measured("table", 1.0)]
    assert bench_forecast.ratios(results) == {"an epoch": [0.5, 2.0], "the run": [1.5, 1.5], "peak memory": [1.5, 1.5]}


def test_the_table_has_a_line_for_each_case_with_the_spread():
    results = [measured("table", 4.0), measured("table", 1.0, load=3.0), measured("text", 2.0)]
    assert bench_forecast.table(results).splitlines()[2:] == [
        "| table | 2 | 1.25 (0.50 to 2.00) | 1.50 (1.50 to 1.50) | 1.50 (1.50 to 1.50) | 2.0 |",
        "| text | 1 | 1.00 (1.00 to 1.00) | 1.50 (1.50 to 1.50) | 1.50 (1.50 to 1.50) | 1.0 |",
    ]


def test_what_the_file_holds_is_not_measured_again(tmp_path, capsys):
    path = tmp_path / "done.jsonl"
    path.write_text("".join(json.dumps(measured("digits", 2.0)) + "\n" for _ in range(2)))
    assert bench_forecast.main(["--out", str(path), "--rounds", "2", "--cases", "digits"]) == 0
    assert "| digits | 2 | 1.00" in capsys.readouterr().out


@pytest.mark.parametrize("name", bench_forecast.RECIPES)
def test_recipes_are_valid(name, tmp_path):
    from finetune.recipe.loader import load_recipe

    (tmp_path / "recipe.yaml").write_text(bench_forecast.RECIPES[name])
    assert load_recipe(tmp_path / "recipe.yaml").train.epochs >= 3
