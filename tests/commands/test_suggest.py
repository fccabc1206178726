"""`finetune suggest` writes groups that can be run, with what was measured as a comment above each."""

from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.commands.suggest import suggest_groups
from finetune.errors import FinetuneError
from finetune.recipe.loader import load_recipe


def test_the_recipes_own_groups_get_rates_in_proportion_and_frozen_ones_stay_frozen(recipe):
    console = Console(file=StringIO(), width=120)
    suggested = suggest_groups(recipe, num_batches=3, console=console)
    norms = {name: mean for name, (mean, _) in suggested.relative_gradient_norms.items()}
    assert set(norms) == {"stem", "body", "head"}
    assert set(suggested.learning_rates) == {"body", "head"}
    largest = max(norms.values())
    for name, rate in suggested.learning_rates.items():
        assert rate == pytest.approx(2e-2 * norms[name] / largest, rel=5e-3)
    assert "prefixes: [stem, bn]\n    frozen: true" in suggested.block
    assert "schedule: exponential_decay" in suggested.block
    assert "momentum: 0.9" in suggested.block
    for name in norms:
        assert f"  # {name}: |gradient| / |weights| = {norms[name]:.2e}" in suggested.block
        assert f"{norms[name]:.2e}" in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["layer", "block"])
def test_a_group_for_each_layer_or_block_extends_the_recipe_and_runs(recipe, by):
    suggested = suggest_groups(recipe, by=by, peak=0.5, num_batches=2, out="new.yaml")
    assert max(suggested.learning_rates.values()) == 0.5
    written = load_recipe("new.yaml")
    assert {group.name: group.learning_rate for group in written.groups} == suggested.learning_rates
    assert Path("new.yaml").read_text().startswith("extends: tiny.yaml\n\n# Rates in proportion")
    assert finetune.plan("new.yaml").peaks == suggested.learning_rates


def test_an_existing_file_is_overwritten_only_on_request(recipe):
    Path("new.yaml").write_text("mine")
    with pytest.raises(FinetuneError, match=r"`new\.yaml` exists\. Add `--overwrite`"):
        suggest_groups(recipe, num_batches=1, out="new.yaml")
    assert Path("new.yaml").read_text() == "mine"
    suggest_groups(recipe, num_batches=1, out="new.yaml", overwrite=True)
    assert load_recipe("new.yaml").groups
    with pytest.raises(FinetuneError, match=r"`--out` must be another file"):
        suggest_groups(recipe, out=recipe, overwrite=True)


@pytest.mark.parametrize("wrong", [{"by": "blok"}, {"peak": -1.0}, {"peak": float("nan")}, {"num_batches": 0}])
def test_arguments_out_of_their_bounds_are_refused(recipe, wrong):
    with pytest.raises(FinetuneError, match="`by` layer or block over at least 1 batch, for a `peak` rate above 0"):
        suggest_groups(recipe, **wrong)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("peak", "outside"), [(1e300, r"`body`: 1e\+300, `head`: \S+e\+\d\d\d"), (1.2e-38, "`head`: ")]
)
def test_rates_that_become_0_or_infinite_in_float32_are_refused(recipe, peak, outside):
    with pytest.raises(FinetuneError, match=f"must be between 1.2e-38 and 3.4e38: .* would be {outside}"):
        suggest_groups(recipe, peak=peak, num_batches=1)


def test_a_missing_folder_is_reported_before_the_measurement(recipe):
    with pytest.raises(FinetuneError, match=r"There is no `no/such`\."):
        suggest_groups(recipe, out="no/such/new.yaml")


def test_a_group_whose_weights_all_belong_to_normalization_that_trains_is_listed_all_the_same(recipe):
    norm = "{name: norm, prefixes: [bn], frozen: true}"
    overrides = [f"groups=[{norm}, {{name: all, rest: true, optimizer: sgd, learning_rate: 0.1}}]"]
    suggested = suggest_groups(recipe, num_batches=1, overrides=[*overrides, "train.always_train=normalization"])
    assert set(suggested.learning_rates) == {"norm-normalization", "all"}
    assert "  # norm: not measured" in suggested.block


def test_a_strategy_is_measured_by_what_it_makes_groups_of(recipe):
    suggested = suggest_groups(
        recipe, num_batches=1, overrides=["groups={by: layer, peak: 1e-2, decay: 2, optimizer: sgd}"]
    )
    assert list(suggested.learning_rates) == ["stem", "bn", "body", "head"]
    assert max(suggested.learning_rates.values()) == 1e-2


def test_a_group_that_the_model_brings_frozen_is_suggested_as_such(tmp_path):
    parts = [keras.layers.Dense(4, name=name) for name in ("stem", "body", "head")]
    model = keras.Sequential([keras.Input((4,)), *parts])
    model.get_layer("stem").trainable = False
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.savez(tmp_path / "d.npz", x_train=x, y_train=x, x_test=x, y_test=x)
    (tmp_path / "r.yaml").write_text(
        "model: {keras_file: m.keras}\ndata: {npz: d.npz}\n"
        "groups: {by: layer, peak: 1.0e-2, decay: 2, optimizer: sgd}\ntrain: {loss: mse, epochs: 1, batch_size: 4}\n"
    )
    suggested = suggest_groups(tmp_path / "r.yaml", num_batches=2)
    assert list(suggested.learning_rates) == list(suggested.relative_gradient_norms) == ["body", "head"]
    stem = suggested.block.index("name: stem")
    assert "frozen: true" in suggested.block[stem : suggested.block.index("name: body")]
    assert "not measured, because it is frozen" in suggested.block
