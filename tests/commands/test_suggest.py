"""`finetune suggest` writes groups that can be run, with the evidence beside every one."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import finetune
from finetune.commands.suggest import suggest_groups
from finetune.errors import FinetuneError
from finetune.recipe.loader import load_recipe


def test_the_recipes_own_groups_get_rates_in_proportion_and_frozen_ones_stay_frozen(recipe):
    told = Console(file=StringIO(), width=120)
    found = suggest_groups(recipe, num_batches=3, console=told)
    norms = {name: mean for name, (mean, _) in found.relative_gradient_norms.items()}
    assert set(norms) == {"stem", "body", "head"}
    assert set(found.learning_rates) == {"body", "head"}
    largest = max(norms.values())
    for name, rate in found.learning_rates.items():
        assert rate == pytest.approx(2e-2 * norms[name] / largest, rel=5e-3)
    assert "prefixes: [stem, bn]\n    frozen: true" in found.block
    assert "schedule: exponential_decay" in found.block
    assert "momentum: 0.9" in found.block
    for name in norms:
        assert f"  # {name}: |gradient| / |weights| = {norms[name]:.2e}" in found.block
        assert f"{norms[name]:.2e}" in told.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["layer", "block"])
def test_a_group_for_each_layer_or_block_extends_the_recipe_and_runs(recipe, by):
    found = suggest_groups(recipe, by=by, peak=0.5, num_batches=2, out="new.yaml")
    assert max(found.learning_rates.values()) == 0.5
    written = load_recipe("new.yaml")
    assert {group.name: group.learning_rate for group in written.groups} == found.learning_rates
    assert Path("new.yaml").read_text().startswith("extends: tiny.yaml\n\n# Rates in proportion")
    assert finetune.plan("new.yaml").peaks == found.learning_rates


def test_a_second_time_nothing_is_written_over(recipe):
    Path("new.yaml").write_text("mine")
    with pytest.raises(FinetuneError, match=r"`new\.yaml` exists\. Say `--overwrite`\."):
        suggest_groups(recipe, num_batches=1, out="new.yaml")
    assert Path("new.yaml").read_text() == "mine"
    suggest_groups(recipe, num_batches=1, out="new.yaml", overwrite=True)
    assert load_recipe("new.yaml").groups
    with pytest.raises(FinetuneError, match=r"`--out` must be another file"):
        suggest_groups(recipe, out=recipe, overwrite=True)


@pytest.mark.parametrize("wrong", [{"by": "blok"}, {"peak": -1.0}, {"peak": float("nan")}, {"num_batches": 0}])
def test_impossible_wishes_are_told(recipe, wrong):
    with pytest.raises(FinetuneError, match="`by` layer or block over at least 1 batch, for a `peak` rate above 0"):
        suggest_groups(recipe, **wrong)


def test_a_folder_that_is_not_there_is_told_before_the_work(recipe):
    with pytest.raises(FinetuneError, match=r"There is no `no/such`\."):
        suggest_groups(recipe, out="no/such/new.yaml")
