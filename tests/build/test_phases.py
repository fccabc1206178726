import csv
import json
from io import StringIO

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.errors import RecipeError, TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.recipe.loader import dump_recipe, load_recipe

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
OPEN = "train.epochs="  # phases say how long
TWO = "phases=[{train: head, epochs: 1}, {train: all, epochs: 2}]"


def planned(recipe, *overrides):
    return finetune.plan(recipe, overrides=overrides)


def ran(recipe, out, *overrides, **more):
    told = StringIO()
    result = finetune.run(recipe, out, overrides=overrides, console=Console(file=told, width=300), **more)
    return result, told.getvalue()


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- A run ------------------------------------------------------------------------------------------------------------


def test_a_run_tells_and_keeps_what_every_phase_did_and_proves_it(recipe, tmp_path):
    result, told = ran(recipe, tmp_path / "out", OPEN, TWO)
    lines = told.splitlines()
    assert "phase 1/2: train head (27 of 187 parameters), 1 epoch" in lines
    assert "phase 2/2: train body, head (99 of 187 parameters), 2 epochs" in lines
    assert [line.split("  ")[-1][:13] for line in lines if line.startswith("epoch 1/3")] == ["rate: head 2."]
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(one["train"], one["epochs"], one["steps"]) for one in stored["phases"]] == [
        (["head"], 1, 4), (["body", "head"], 2, 8),
    ]  # fmt: skip
    assert [(one["frozen_tensors"], one["frozen_unchanged"]) for one in stored["phases"]] == [(8, True), (6, True)]
    table = rows_of(tmp_path / "out" / "metrics.csv")
    assert [(row["epoch"], row["phase"]) for row in table] == [("1", "1"), ("2", "2"), ("3", "2")]
    assert result.frozen_unchanged
    assert len(result.phases) == 2
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again.phases == load_recipe(recipe, overrides=[OPEN, TWO]).phases


def test_without_phases_neither_the_result_nor_the_plan_nor_the_metrics_speak_of_them(recipe, tmp_path):
    ran(recipe, tmp_path / "out")
    for name in ("result.json", "plan.json"):
        assert "phases" not in json.loads((tmp_path / "out" / name).read_text())
    assert "phase" not in rows_of(tmp_path / "out" / "metrics.csv")[0]


@pytest.mark.slow
def test_one_phase_of_everything_is_bit_identical_to_a_run_without_phases(recipe, tmp_path):
    plain, _ = ran(recipe, tmp_path / "plain")
    phased, _ = ran(recipe, tmp_path / "phased", "phases=[{train: all, epochs: 2}]")
    assert plain.metrics == phased.metrics
    for one, other in zip(layer_tree(plain.model).leaves, layer_tree(phased.model).leaves, strict=True):
        np.testing.assert_array_equal(one.variable, other.variable)


@pytest.mark.slow
def test_a_phase_that_ends_early_shortens_the_run(recipe, tmp_path):
    phases = "phases=[{train: all, epochs: 5, until: {monitor: loss, min_delta: 100, patience: 1}}, {train: head, epochs: 1}]"
    result, told = ran(recipe, tmp_path / "out", OPEN, phases)
    assert [phase.epochs for phase in result.phases] == [2, 1]
    assert [line for line in told.splitlines() if line.startswith("epoch")][-1].startswith("epoch 3/3")


def test_a_loss_that_is_no_number_ends_all_phases(recipe, tmp_path):
    phases = "phases=[{train: head, epochs: 1, rates: {head: 1.0e+38}}, {train: all, epochs: 1}]"
    with pytest.raises(TrainingError, match="A loss must be a finite number"):
        ran(recipe, tmp_path / "out", OPEN, phases, "groups.head.optimizer=sgd")
    assert {row["phase"] for row in rows_of(tmp_path / "out" / "metrics.csv")} == {"1"}


@pytest.mark.slow
def test_recalibrate_estimates_statistics_of_trained_groups_after_training(recipe, tmp_path):
    own = ["groups.stem.frozen=", "groups.stem.optimizer=sgd", "groups.stem.learning_rate=1e-3"]
    plain, _ = ran(recipe, tmp_path / "plain", *own)
    again, told = ran(recipe, tmp_path / "again", *own, recalibrate=True)
    assert "recalibrated: the statistics of 1 BatchNormalization layers" in told
    changed = [
        one.name
        for one, other in zip(layer_tree(plain.model).leaves, layer_tree(again.model).leaves, strict=True)
        if not np.array_equal(one.variable, other.variable)
    ]
    assert changed == ["bn/moving_mean", "bn/moving_variance"]


@pytest.mark.slow
def test_a_model_with_every_mode_of_batch_normalization_opens_in_plain_keras(recipe, tmp_path):
    own = ["groups.stem.frozen=", "groups.stem.optimizer=sgd", "groups.stem.learning_rate=1e-3"]
    phases = "phases=[{train: all, epochs: 1, batch_norm: affine}, {train: [body, head], epochs: 1, batch_norm: {stem: statistics}}]"
    result, _ = ran(recipe, tmp_path / "out", *own, phases)
    loaded = keras.models.load_model(tmp_path / "out" / "model.keras")
    x = np.ones((3, 6), "float32")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), result.model.predict(x, verbose=0))


# -- The plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_who_is_trained_when_at_which_rates_and_what_batch_normalization_does(recipe):
    halving = "{schedule: exponential_decay, initial: 0.1, decay_steps: 1, decay_rate: 0.5}"
    phases = f"phases=[{{train: head, epochs: 1}}, {{train: all, epochs: 2, clock: phase, rates: {{head: {halving}}}}}]"
    plan = planned(recipe, OPEN, phases).plan
    first, second = plan.phases
    assert (first.train, first.epochs, first.steps, first.parameters) == (("head",), 1, 4, 27)
    assert first.learning_rates == {"head": (2e-2, 2e-2, 2e-2)}
    assert second.learning_rates["head"] == pytest.approx((0.1, 0.1 * 0.5**3, 0.1 * 0.5**7))
    assert second.learning_rates["body"] == pytest.approx((1e-2, 1e-2, 5e-3))  # its own, counted from the phase's start
    assert second.notes == (
        "schedules count from the start of the phase",
        "sets rates that replace those written for `head`",
    )
    assert second.batch_norm == {"stem": "freeze"}
    head = next(row for row in plan.weights if row.name == "head/kernel")
    assert head.learning_rate == pytest.approx((2e-2, 0.1 * 0.5, 0.1 * 0.5**7))  # of 12 steps the first, sixth and last


def test_lengths_are_of_the_run_or_of_the_phase_as_the_clock_says(recipe):
    body = "groups.body.learning_rate={schedule: polynomial_decay, initial: 0.1, end: 0.0, decay_fraction: 1.0}"
    for clock, last in (("run", 0.1 / 12), ("phase", 0.1 / 8)):
        phases = f"phases=[{{train: head, epochs: 1}}, {{train: all, epochs: 2, clock: {clock}}}]"
        assert planned(recipe, OPEN, phases, body).plan.phases[1].learning_rates["body"][2] == pytest.approx(
            last, rel=1e-5
        )


def test_a_phase_in_steps_has_just_these(recipe):
    layout = planned(recipe, OPEN, "phases=[{train: head, steps: 5}, {train: all, epochs: 1}]")
    assert [(phase.epochs, phase.steps) for phase in layout.plan.phases] == [(2, 5), (1, 4)]
    assert (layout.length.epochs, layout.length.steps) == (3, 9)


def test_a_strategy_comes_with_the_list_it_stands_for_which_can_be_pasted_back(recipe):
    layout = planned(recipe, OPEN, "phases={strategy: gradual_unfreezing, epochs: 2}")
    lines = recipe.read_text().replace("epochs: 2, ", "") + layout.phases_block
    recipe.write_text(lines)
    pasted = planned(recipe)
    assert pasted.phases_block is None
    assert pasted.plan.phases == layout.plan.phases


def test_groups_made_by_a_strategy_can_be_named_in_phases(recipe):
    groups = "groups={by: layer, peak: 1.0e-2, decay: 2.6, optimizer: sgd}"
    plan = planned(recipe, OPEN, groups, "phases=[{train: [head], epochs: 1}, {train: all, epochs: 1}]").plan
    assert [phase.train for phase in plan.phases] == [("head",), ("stem", "bn", "body", "head")]
    with pytest.raises(
        RecipeError, match=r"`phases.0.train.0` does not name a group. Received: `hed`. Did you mean `head`\?"
    ):
        planned(recipe, OPEN, groups, "phases=[{train: [hed], epochs: 1}, {train: all, epochs: 1}]")


def test_the_plan_says_which_groups_surgical_never_trains(recipe):
    plan = planned(recipe, "phases={strategy: surgical, train: last}").plan
    assert [phase.train for phase in plan.phases] == [("head",)]
    assert any(advice.startswith("No phase trains `body`.") for advice in plan.advice)
    assert {row.frozen for row in plan.weights if row.group == "body"} == {True}


# -- Normalization that always trains, and what groups say ------------------------------------------------------------


@pytest.mark.slow
def test_normalization_of_a_group_frozen_for_good_becomes_a_group_with_the_next_groups_optimizer(recipe, tmp_path):
    layout = planned(recipe, "train.always_train=normalization")
    assert [group.name for group in layout.groups] == ["stem-normalization", "stem", "body", "head"]
    row = next(row for row in layout.plan.weights if row.name == "bn/gamma")
    assert (row.group, row.optimizer, row.batch_normalization) == (
        "stem-normalization",
        "momentum",
        "training, statistics updated",
    )
    result, _ = ran(recipe, tmp_path / "out", "train.always_train=normalization", OPEN, TWO)
    assert [phase.train for phase in result.phases] == [
        ("stem-normalization", "head"), ("stem-normalization", "body", "head"),
    ]  # fmt: skip
    assert result.frozen_tensors == 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("phases", [(), (OPEN, TWO)])
def test_statistics_of_a_group_frozen_for_good_may_be_estimated(recipe, tmp_path, phases):
    result, told = ran(recipe, tmp_path / "out", "groups.stem.batch_norm=statistics", *phases)
    assert result.frozen_unchanged
    assert "phase 1/1" not in told
    moved = np.any(result.model.get_layer("bn").moving_mean.numpy() != 0)
    assert moved


# -- Wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phases=gradual_unfreezing", OPEN], "`phases` does not say how long its last phase is. Give it `epochs`"),
        (["phases={strategy: chain_thaw, epochs: 9}"], "`train.epochs` is 2, and `phases` last 11 epochs together."),
        (["phases=gradual_unfreezing", "train.epochs=1"], "needs 1 epochs before its last phase, and `train.epochs` is 1."),
        (
            ["phases=[{train: all, epochs: 2, until: {patience: 1}}]"],
            "`until` monitors `val_loss`, but there are no validation examples. Set `train.validation_fraction`, or monitor `loss`.",
        ),
        (
            ["phases=[{train: head, epochs: 1, batch_norm: {body: affine}}, {train: all, epochs: 1}]"],
            "`phases.0`: `batch_norm: affine` trains gamma and beta, and `body` is frozen in this phase.",
        ),
        (
            ["phases=[{train: all, epochs: 2, rates: {head: {schedule: piecewise_constant_decay, boundaries: [5, 3], values: [1, 2, 3]}}}]"],
            "must be a list in which every entry is larger than the one before",
        ),
        (["groups.stem.batch_norm=affine"], "`groups.stem.batch_norm` trains gamma and beta, and the group is frozen. Write `statistics`"),
        (["groups.body.dropout=maybe"], "`groups.body.dropout` is not a known value."),
        (
            ["phases=[{train: all, epochs: 2, rates: {head: 1.0e-3}}]", "train.learning_rate=auto"],
            "`phases.0` sets rates, which `train.learning_rate: auto` does not change.",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_reported_before_anything_is_read_or_written(recipe, tmp_path, overrides, message):
    with pytest.raises(RecipeError) as caught:
        ran(recipe, tmp_path / "out", *overrides)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_fault_in_a_file_has_its_line_and_column(recipe):
    recipe.write_text(
        recipe.read_text().replace("epochs: 2, ", "")
        + "phases:\n  - {train: [head], epochs: 1}\n  - {train: [bodi], epochs: 1}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert (
        str(caught.value)
        == "tiny.yaml:14:14: `phases.1.train.0` does not name a group. Received: `bodi`. Did you mean `body`?"
    )


@pytest.mark.parametrize("phases", ["gradual_unfreezing", "{strategy: lp_ft, epochs: 3}", TWO.removeprefix("phases=")])
def test_a_recipe_with_phases_dumped_and_loaded_is_itself(recipe, phases):
    wanted = load_recipe(recipe, overrides=[*([] if phases == "gradual_unfreezing" else [OPEN]), f"phases={phases}"])
    recipe.write_text(dump_recipe(wanted, absolute_paths=True))
    assert load_recipe(recipe) == wanted


def test_until_of_a_run_without_phases_needs_the_metric_that_it_monitors(recipe):
    with pytest.raises(
        RecipeError, match=r"tiny.yaml:\d+:\d+: .*`until` monitors `val_loss`, but there are no validation"
    ):
        finetune.run(recipe, overrides=["train.until={patience: 1}"])
