"""`train.learning_rate: search` takes the rates that the validation rows prefer, and nothing else of its trainings."""

from io import StringIO
from pathlib import Path

import keras
import pytest
import yaml
from rich.console import Console

import finetune
from finetune.commands.plan import print_plan
from finetune.commands.rate_search import with_searched_rates
from finetune.errors import FinetuneError, TrainingError
from finetune.training import searched_rates

SEARCH = [
    *("train.learning_rate=search", "train.validation_fraction=0.3"),
    *("report=off", "train.log_every_steps=off", "train.kernels=exact", "train.evaluate_before=false"),
]


def peaks(path):
    return finetune.plan(path).peaks


@pytest.mark.grid
def test_the_best_rates_are_taken_and_the_run_is_that_of_a_recipe_that_has_them(recipe, monkeypatch):
    monkeypatch.setattr(searched_rates, "FACTORS", (1e-6, 3.0))  # at the first, nothing is learned
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
    monkeypatch.setattr(searched_rates, "FACTORS", (1e30, 1.0))
    console = Console(file=StringIO(), width=160)
    layout = finetune.plan(recipe, overrides=[*SEARCH, "train.epochs=1"])
    found = with_searched_rates(layout, console)
    assert "validation loss no finite number" in console.file.getvalue()
    assert found.peaks == pytest.approx(layout.peaks)
    monkeypatch.setattr(searched_rates, "FACTORS", (1e30,))
    with pytest.raises(TrainingError, match=r"at all of them the loss is no finite number\. Write lower rates"):
        with_searched_rates(found, console)
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_a_training_that_fails_for_another_reason_is_not_taken_for_a_loss_that_is_no_number(recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(keras.Model, "fit", fail)
    with pytest.raises(TrainingError, match=r"^The search of the rates stopped with an error\. The storage does"):
        finetune.run(recipe, "out", overrides=SEARCH)
    assert not Path("out").exists()


def test_without_validation_rows_there_is_nothing_to_go_by(recipe):
    with pytest.raises(
        FinetuneError,
        match=r"`train\.learning_rate` \(`search`\) goes by the validation rows, but there are no validation examples\. Set",
    ):
        finetune.run(recipe, "out", overrides=SEARCH[:1])
    assert not Path("out").exists()


def test_the_plan_says_what_the_search_does_and_costs(recipe):
    console = Console(file=StringIO(), width=200)
    print_plan(finetune.plan(recipe, overrides=SEARCH), console)
    assert (
        "search of the rates: 3 trainings of 6 steps each, at a third of the rates, at the rates and at three times the "
        "rates, of which the loss on 18 validation rows chooses; then the training itself: 24 steps in all"
    ) in " ".join(console.file.getvalue().split())
