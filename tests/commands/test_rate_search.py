"""`train.learning_rate: search` takes the rates that the validation rows prefer, and nothing else of its trainings."""

from io import StringIO
from pathlib import Path

import keras
import pytest
import yaml
from rich.console import Console

import finetune
from finetune.commands import rate_search
from finetune.errors import FinetuneError, TrainingError

SEARCH = ["train.learning_rate=search", "train.validation_fraction=0.3"]


def peaks(path):
    return finetune.plan(path).peaks


def test_the_best_rates_are_taken_and_the_run_is_that_of_a_recipe_that_has_them(recipe, monkeypatch):
    monkeypatch.setattr(rate_search, "FACTORS", (1e-6, 3.0))  # at the first, nothing is learned
    console = Console(file=StringIO(), width=160)
    searched = finetune.run(recipe, "searched", overrides=SEARCH, console=console)
    written = peaks(recipe)
    assert peaks("searched/recipe.yaml") == pytest.approx({name: 3 * peak for name, peak in written.items()})
    assert "learning_rate" not in yaml.safe_load(Path("searched/recipe.yaml").read_text())["train"]
    # The weights, slots and random numbers of the trainings before are gone: the same run comes of the recipe alone.
    again = finetune.run("searched/recipe.yaml", "again")
    assert again.metrics == searched.metrics
    lines = [line.split() for line in console.file.getvalue().splitlines() if "validation loss" in line]
    assert len(lines) == 2
    low, high = (float(line[-1]) for line in lines)
    assert high < low
    assert not [path for path in Path().iterdir() if path.name not in ("tiny.yaml", "searched", "again")]


def test_a_rate_at_which_the_loss_is_no_number_loses_and_where_all_do_the_run_fails(recipe, monkeypatch):
    monkeypatch.setattr(rate_search, "FACTORS", (1e30, 1.0))
    console = Console(file=StringIO(), width=160)
    finetune.run(recipe, "one", overrides=[*SEARCH, "train.epochs=1"], console=console)
    assert "validation loss no finite number" in console.file.getvalue()
    assert peaks("one/recipe.yaml") == pytest.approx(peaks(recipe))
    monkeypatch.setattr(rate_search, "FACTORS", (1e30,))
    with pytest.raises(TrainingError, match=r"at all of them the loss is no finite number\. Write lower rates"):
        finetune.run(recipe, "none", overrides=[*SEARCH, "train.epochs=1"])
    assert not Path("none").exists()


def test_a_training_that_fails_for_another_reason_is_not_taken_for_a_loss_that_is_no_number(recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(keras.Model, "fit", fail)
    with pytest.raises(TrainingError, match=r"^The search of the rates stopped with an error\. The storage does"):
        finetune.run(recipe, "out", overrides=SEARCH)
    assert not Path("out").exists()


def test_without_validation_rows_there_is_nothing_to_go_by(recipe):
    with pytest.raises(
        FinetuneError, match=r"goes by the validation rows, and there are none\. Set `data\.split\.validation`"
    ):
        finetune.run(recipe, "out", overrides=SEARCH[:1])
    assert not Path("out").exists()
