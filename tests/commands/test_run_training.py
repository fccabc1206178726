"""A run makes the steps of its plan, and ends in one line where they cannot be made."""

import csv
import json
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text())


DIVERGE = ["groups.body.learning_rate=1e30", "groups.head.learning_rate=1e30"]


def test_a_loss_that_is_no_number_ends_the_run_with_advice_and_leaves_no_model_of_a_former_run_either(
    recipe, names_in, former_run
):
    with pytest.raises(TrainingError) as error:
        finetune.run(recipe, "out", overrides=DIVERGE, overwrite=True)
    assert error.value.exit_code == 1
    assert "in epoch 1, step " in str(error.value)
    assert "Lower the learning rates, or set `train.global_clipnorm: 1.0`." in str(error.value)
    assert f"`{Path('out/metrics.csv')}`" in str(error.value)
    assert names_in("out") == {
        *("note.txt", "recipe.yaml", "plan.txt", "plan.json", "restore.json", "data.json", "metrics.csv"),
        *("tensorboard", "run.log", "environment.json"),
    }
    assert "old" not in Path("out/recipe.yaml").read_text()


@pytest.fixture
def one_bad_row(recipe, rows):
    """The recipe, with a row among the training rows on which the gradients overflow."""
    x, y = rows[0].astype("float32"), rows[1]
    x[20] = 3e38
    np.savez("bad.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return recipe, ["data.npz=bad.npz"]


def test_a_step_that_is_not_finite_ends_the_run_with_the_weights_before_it(one_bad_row):
    recipe, overrides = one_bad_row
    with pytest.raises(TrainingError) as caught:
        finetune.run(recipe, "out", overrides=[*overrides, "train.non_finite=stop"])
    message = str(caught.value)
    assert message.startswith("Gradients must be finite numbers. They were not in epoch 1, step ")
    assert "(group `body`)" in message
    assert "steps of epoch 1 are in `out/checkpoints/last.weights.h5`." in message or "No weights are saved." in message
    assert not Path("out/model.keras").exists()


def test_steps_that_are_left_out_are_counted_in_the_result_and_told(one_bad_row):
    recipe, overrides = one_bad_row
    told = StringIO()
    result = finetune.run(
        recipe, "out", overrides=[*overrides, "train.non_finite=skip"], console=Console(file=told, width=400)
    )
    assert result.skipped_steps == read_json(Path("out/result.json"))["skipped_steps"] == 2
    (warning,) = result.warnings
    assert warning.startswith(
        "2 of 8 steps were left out, since gradients were not finite; the first in epoch 1, step "
    )
    assert f"warning: {warning}" in told.getvalue()
    assert np.isfinite([float(row["loss"]) for row in rows_of(Path("out/metrics.csv"))]).all()


def test_weights_that_are_no_numbers_are_not_kept_in_place_of_those_that_were(recipe, monkeypatch):
    from finetune.training import run_fit

    class Breaks(run_fit.LearningRateLogger):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("bn").moving_mean.assign([np.nan] * 8)

    monkeypatch.setattr(run_fit, "LearningRateLogger", Breaks)
    with pytest.raises(TrainingError) as caught:
        finetune.run(recipe, "out")
    assert str(caught.value).startswith(
        "Every weight and every moving statistic must be a finite number. Since epoch 2"
    )
    assert str(caught.value).endswith(" The weights after epoch 1 are in `out/checkpoints/last.weights.h5`.")


@pytest.mark.slow
@pytest.mark.parametrize("fast_loop", ["false", "true"])
def test_a_run_makes_the_steps_of_its_plan_whoever_makes_them_and_however_many_share_a_call(recipe, fast_loop):
    phases = "phases=[{train: [head], epochs: 2}, {train: all, steps: 6}, {train: all, steps: 2}]"
    jit = {"true": "false", "false": "true"}[fast_loop]  # XLA needs Keras' own loop
    overrides = [phases, "train.epochs=null", "train.steps_per_execution=64", f"train.jit_compile={jit}"]
    result = finetune.run(recipe, "out", overrides=overrides)
    assert [phase.steps for phase in result.phases] == [8, 6, 2]


@pytest.mark.slow
@pytest.mark.parametrize("mixed", ["bfloat16", "float16"])
def test_a_run_in_mixed_precision_keeps_float32_weights_and_puts_the_policy_back(recipe, mixed):
    overrides = [
        "model={builder: finetune.examples.digits:small_cnn}",
        "data={builder: finetune.examples.digits:uci_digits, arguments: {train_rows: 20, test_rows: 20}}",
        "groups.stem.prefixes=[conv1, bn1]",
        "groups.body.prefixes=[conv2, bn2, conv3, bn3]",
        f"train.mixed_precision={mixed}",
        "train.epochs=1",
    ]
    result = finetune.run(recipe, "out", overrides=overrides)
    assert result.frozen_unchanged
    assert {leaf.variable.dtype for leaf in layer_tree(result.model).leaves} == {"float32"}
    assert result.model.get_layer("conv2").compute_dtype == mixed
    assert keras.config.dtype_policy().name == "float32"
    assert keras.models.load_model("out/model.keras").get_layer("conv2").compute_dtype == mixed


@pytest.mark.slow
def test_validation_rows_of_the_data_are_used(recipe, rows):
    x, y = rows
    np.savez(
        "own.npz",
        x_train=x[:50],
        y_train=y[:50],
        x_test=x[60:],
        y_test=y[60:],
        x_validation=x[50:60],
        y_validation=y[50:60],
    )
    result = finetune.run(recipe, "out", overrides=[f"data.npz={Path('own.npz').absolute()}", "train.epochs=1"])
    assert "val_loss" in rows_of(result.folder / "metrics.csv")[0]
    assert read_json(result.folder / "plan.json")["steps"] == 4  # 50 rows by 16


def test_a_moving_variance_that_becomes_no_number_fails_the_run(recipe, tmp_path, monkeypatch):
    poison = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            poison.model.get_layer("bn").moving_variance.assign(
                np.full(poison.model.get_layer("bn").moving_variance.shape, np.nan)
            )
            if epoch == 1
            else None
        )
    )
    monkeypatch.setattr("finetune.training.run_fit.LearningRateLogger", lambda: poison)
    with pytest.raises(
        TrainingError, match=r"Since epoch 2 \(all were finite after epoch 1\), .*`bn/moving_variance` \(group `stem`\)"
    ):
        finetune.run(recipe, tmp_path / "out", overrides=["train.epochs=3"])
    assert not (tmp_path / "out" / "model.keras").exists()
