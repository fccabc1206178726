"""`finetune lr-range` measures what a recipe would train, writes what it is asked to, and no more."""

from io import StringIO
from json import loads
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import finetune
import finetune.commands.lr_range as module
from finetune.commands.lr_range import Range, lr_range
from finetune.commands.plan import print_plan
from finetune.errors import FinetuneError, GroupError, LockError, RecipeError, TrainingError
from finetune.results.run_folder import open_run_folder

TRAINABLE = [  # all rows in a batch: no noise
    "train.batch_size=60",
    "groups.body.learning_rate=1e-2",
]


def printed(console: Console) -> str:
    return console.file.getvalue()


@pytest.fixture
def console():
    return Console(file=StringIO(), width=120)


def test_the_curve_and_its_pictures_are_written_beside_each_other_and_nothing_else(recipe, console):
    before = recipe.read_bytes()
    result = lr_range(recipe, out="out", overrides=TRAINABLE, console=console)
    assert sorted(path.name for path in Path("out").iterdir()) == ["lr_range.json", "lr_range.png", "lr_range.svg"]
    written = loads(Path("out/lr_range.json").read_text())
    assert written["learning_rates"] == result.learning_rates
    assert written["base_rates"] == {"body": 1e-2, "head": 2e-2}
    assert recipe.read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["out", "tiny.yaml"]
    text = printed(console)
    assert "the batches are repeated" in text
    assert "smoothed loss against the learning rate of `head`; all groups rise" in text
    for rule in ("valley", "slide", "minimum", "steep"):
        assert rule in text
    assert f"suggested for `head`: {result.learning_rates['head']:.3g}" in text


def test_write_puts_the_rates_into_the_recipe_and_keeps_the_rest(recipe, console):
    recipe.write_text(recipe.read_text().replace("initial: 1.0e-2", "initial:  1.0e-2") + "# the end\n")
    before = recipe.read_text()
    result = lr_range(recipe, write=True, overrides=TRAINABLE[:1], console=console)
    body, head = (f"{result.learning_rates[name]:.2e}" for name in ("body", "head"))
    after = finetune.plan(recipe).peaks
    assert after == {"body": float(body), "head": float(head)}
    changed = [(a, b) for a, b in zip(before.splitlines(), recipe.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 2
    assert recipe.read_text().endswith("# the end\n")
    assert f"tiny.yaml:9:60: 0.01 -> {after['body']:g}" in printed(console)


def test_what_cannot_be_written_is_reported_before_anything_is_measured(recipe, console):
    with pytest.raises(RecipeError, match=r"comes from `--set groups\.body\.learning_rate`"):
        lr_range(recipe, write=True, overrides=TRAINABLE, console=console)
    assert printed(console) == ""


def test_a_refusal_is_printed_and_nothing_is_written(recipe, console):
    before = recipe.read_bytes()
    flat = Range(start=1e-12, end=1e-10, steps=40)
    with pytest.raises(
        TrainingError, match=r"`--write` writes the rate.*The test gave no suggestion\. The curve is flat"
    ):
        lr_range(recipe, flat, write=True, console=console)
    assert recipe.read_bytes() == before
    assert "no suggestion: The curve is flat" in printed(console)


@pytest.mark.slow
def test_of_a_recipe_with_phases_the_first_is_tested_and_the_cost_is_told(recipe, console, monkeypatch):
    trained, sweep = [], module.lr_range_test
    monkeypatch.setattr(
        module,
        "lr_range_test",
        lambda model, *data, **more: (
            trained.append([v.path for v in model.trainable_variables]) or sweep(model, *data, **more)
        ),
    )
    phases = ["phases=[{train: head, epochs: 1}, {train: all, epochs: 1}]", "train.epochs="]
    lr_range(recipe, Range(steps=30), overrides=phases, console=console)
    assert trained == [["head/kernel", "head/bias"]]
    said = " ".join(printed(console).split())
    assert "LR range test of phase 1, which trains `head` alone: 30 steps, as many as 7.5 epochs have;" in said
    assert "smoothed loss against the learning rate of `head`; `head` trained" in said


def test_each_group_is_swept_and_reported_alone(recipe, console):
    result = lr_range(recipe, Range(each=True), overrides=TRAINABLE, console=console)
    assert list(result.sweeps) == ["body", "head"]
    assert "against the learning rate of `body` alone" in printed(console)


def test_a_group_that_is_frozen_or_unknown_is_refused(recipe):
    with pytest.raises(
        GroupError, match=r"A group to sweep is one of those that are trained: `body`.*\. Received `stem`"
    ):
        lr_range(recipe, Range(group="stem"))


def test_the_rates_of_a_warm_up_are_those_of_its_peak(recipe):
    rate = "{schedule: one_cycle, peak: 0.04}"
    result = lr_range(recipe, Range(steps=25), overrides=[f"groups.head.learning_rate={rate}"])
    assert result.base_rates == {"body": 1e-2, "head": 4e-2}
    [sweep] = result.sweeps["all groups"]
    np.testing.assert_allclose(sweep.rates[:, 1] / sweep.rates[:, 0], 4, rtol=1e-6)


@pytest.mark.slow
def test_auto_measures_first_records_it_and_its_recipe_repeats_the_run_exactly(recipe, console):
    overrides = [*TRAINABLE, "train.learning_rate=auto"]
    first = finetune.run(recipe, "auto", overrides=overrides, console=console)
    assert sorted(path.name for path in Path("auto/plots").iterdir()) == [
        "lr_range.json",
        "lr_range.png",
        "lr_range.svg",
        "training.png",
        "training.svg",
    ]
    rates = loads(Path("auto/plots/lr_range.json").read_text())["learning_rates"]
    rows = loads(Path("auto/plan.json").read_text())["weights"]
    planned = {row["group"]: row["learning_rate"][0] for row in rows if row["learning_rate"]}
    assert {name: planned[name] for name in rates} == pytest.approx(rates, rel=5e-3)
    assert "learning_rate: auto" not in Path("auto/recipe.yaml").read_text()
    second = finetune.run("auto/recipe.yaml", "again")
    assert first.metrics == second.metrics
    assert loads(Path("auto/result.json").read_text())["seconds"]["lr_range"] > 0


@pytest.mark.slow
def test_auto_without_a_suggestion_fails_and_leaves_no_folder(recipe):
    same = ["data.npz=same.npz", "train.learning_rate=auto"]
    generator = np.random.default_rng(0)
    noise = {"x_train": generator.normal(size=(60, 6)), "x_test": generator.normal(size=(9, 6))}
    labels = {"y_train": generator.integers(0, 3, 60), "y_test": generator.integers(0, 3, 9)}
    np.savez("same.npz", **{key: value.astype("float32") * 0 for key, value in noise.items()}, **labels)
    with pytest.raises(
        TrainingError, match=r"`train\.learning_rate: auto` takes the rate .* The test gave no suggestion\."
    ):
        finetune.run(recipe, "out", overrides=same)
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_recipe_behind_a_link_is_changed_where_it_lies_with_its_line_ends_and_its_rights(recipe):
    text = recipe.read_text().replace("\n", "\r\n")
    Path("there").mkdir()
    real = Path("there/real.yaml")
    real.write_text(text, newline="")
    real.chmod(0o600)
    recipe.unlink()
    recipe.symlink_to(real)
    lr_range(recipe, write=True, overrides=TRAINABLE[:1])
    assert recipe.is_symlink()
    assert real.read_bytes().count(b"\r\n") == text.count("\r\n")
    assert real.read_text() != text
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_a_file_is_refused_before_the_work(recipe):
    Path("out").write_text("mine")
    with pytest.raises(FinetuneError, match=r"`--out out` is a file"):
        lr_range(recipe, out="out")


def test_an_unknown_way_to_treat_the_other_groups_is_an_error_before_the_work(recipe):
    with pytest.raises(GroupError, match=r"`rest` is now called `frozen`"):
        lr_range(recipe, Range(group="body", others="rest"))


def test_the_plan_says_that_the_rates_are_still_to_be_measured(recipe, console):
    print_plan(finetune.plan(recipe, overrides=["train.learning_rate=auto"]), console)
    assert "`train.learning_rate: auto` measures the rates before training" in " ".join(printed(console).split())
    with pytest.raises(RecipeError, match=r"`train\.learning_rate` may only be `auto`.*Received: `0\.1`"):
        finetune.plan(recipe, overrides=["train.learning_rate=0.1"])


def test_one_group_of_a_strategy_cannot_be_written_and_too_few_steps_cannot_be_judged(recipe):
    strategy = ["groups={by: layer, peak: 1e-2, decay: 2.6, optimizer: adam}"]
    for alone in (Range(group="head"), Range(each=True)):
        with pytest.raises(RecipeError, match=r"the rate of a single group cannot be written"):
            lr_range(recipe, alone, write=True, overrides=strategy)
    with pytest.raises(FinetuneError, match=r"needs at least 2\d `steps`\. Received: 20\."):
        lr_range(recipe, Range(steps=20))


@pytest.mark.slow
def test_writing_beside_auto_says_that_auto_is_still_there(recipe, console):
    recipe.write_text(recipe.read_text().replace("{epochs: 2,", "{learning_rate: auto, epochs: 2,"))
    lr_range(recipe, write=True, overrides=TRAINABLE[:1], console=console)
    assert "`train.learning_rate: auto` is still in the recipe" in printed(console)


def test_a_folder_with_files_is_taken_only_where_the_user_says_so(recipe):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    with pytest.raises(FinetuneError, match=r"does not overwrite files. `--out out` is not empty"):
        lr_range(recipe, out="out", overrides=TRAINABLE)
    for _ in range(2):
        lr_range(recipe, Range(steps=30), out="out", overwrite=True, overrides=TRAINABLE)
    names = ["lr_range.json", "lr_range.png", "lr_range.svg", "mine.txt"]
    assert sorted(path.name for path in Path("out").iterdir()) == names


def test_a_folder_that_a_run_writes_is_refused_before_the_work(recipe):
    with open_run_folder(Path("out"), name="x"), pytest.raises(LockError, match=r"`.*out` is in use: process"):
        lr_range(recipe, out="out", overwrite=True, overrides=TRAINABLE)


def test_nothing_is_left_of_a_test_that_fails(recipe):
    with pytest.raises(FinetuneError):
        lr_range(recipe, Range(group="nobody"), out="out/deep", overrides=TRAINABLE)
    assert not Path("out/deep").exists()
