from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from finetune.cli import app
from finetune.errors import FinetuneError

ROOT = Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "recipes" / "digits.yaml"


@pytest.mark.slow
def test_an_lr_range_test_shows_a_curve_and_a_rate_and_writes_what_is_asked_for(finetune, tmp_path):
    before = DIGITS.read_bytes()
    done = finetune("lr-range", DIGITS, "--group", "head", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "learning rate of `head` alone" in done.stdout
    assert 1e-3 < float(done.stdout.partition("suggested for `head`: ")[2].split()[0]) < 1e-1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "lr_range.json",
        "lr_range.png",
        "lr_range.svg",
    ]
    assert DIGITS.read_bytes() == before


@pytest.mark.slow
def test_an_lr_range_test_that_refuses_exits_1_and_one_that_cannot_be_made_exits_2(finetune, refused, recipe):
    done = finetune("lr-range", recipe, "--start", "1e-12", "--end", "1e-10", "--steps", "40")
    assert (done.returncode, done.stderr) == (1, "")
    assert "no suggestion: The curve is flat" in done.stdout
    assert "raises the rate from `--start` > 0" in refused("lr-range", recipe, "--start", "-1")


@pytest.mark.slow
def test_suggested_groups_are_alone_on_stdout_so_that_they_can_be_piped(finetune, recipe):
    done = finetune("suggest", recipe, "--batches", "2")
    assert done.returncode == 0
    assert [group["name"] for group in yaml.safe_load(done.stdout)["groups"]] == ["stem", "body", "head"]
    assert "of the largest" in done.stderr


@pytest.mark.parametrize("options", [("--start", "-1"), ("--repeats", "0"), ("--others", "rest"), ("--steps", "3")])
def test_what_no_sweep_can_be_made_of_is_refused_before_tensorflow_starts(options, monkeypatch):
    monkeypatch.setattr("finetune.cli.find_rates.start_command", lambda *_, **__: pytest.fail("it has begun"))
    refused = CliRunner().invoke(app, ["lr-range", "recipe.yaml", *options]).exception
    assert isinstance(refused, FinetuneError)
    assert options[0] in str(refused)
