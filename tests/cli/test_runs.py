import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "recipes" / "digits.yaml"


@pytest.mark.slow
def test_a_run_tells_plan_epochs_metrics_proof_and_folder_and_nothing_on_stderr(finetune, recipe):
    done = finetune("run", recipe, "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "model: tiny, 187 parameters"
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    starts = [line.partition(": ")[0] for line in lines]
    results = starts.index("test loss")
    assert starts[results : results + 3] == ["test loss", "test accuracy", "without inputs"]
    assert [line.split() for line in lines[results + 3 :]][1] == ["class", "test", "recall", "precision"]
    assert lines[-2:] == ["proof: all 6 frozen tensors are bit-identical to the start", "written: out"]


@pytest.mark.slow
def test_bad_input_found_only_with_the_model_exits_2_with_its_place_and_leaves_nothing(refused, recipe):
    assert refused("run", recipe, "--out", "out", "--set", "groups.body.prefixes=[bdy]") == (
        "error: --set groups.body.prefixes: group `body` matches nothing: `prefixes: [bdy]`. The model's top layers are "
        "`stem`, `bn`, `body`, `head`. Did you mean `body`?\n"
    )
    assert not Path("out").exists()


@pytest.mark.slow
def test_training_that_fails_exits_1_with_advice_alone(refused, recipe):
    rates = ["--set", "groups.body.learning_rate=1e30", "--set", "groups.head.learning_rate=1e30"]
    message = refused("run", recipe, "--out", "out", *rates, code=1)
    assert message.startswith("error: A loss must be a finite number.")
    assert message.count("\n") == 1
    assert not Path("out/model.keras").exists()


@pytest.mark.slow
def test_the_embedded_recipe_runs_and_learns(finetune, tmp_path):
    done = finetune("run", DIGITS, "--out", tmp_path / "out", "--set", "train.epochs=5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["frozen_unchanged"] is True
    assert result["metrics"]["accuracy"] > 0.7
    assert result["metrics"]["accuracy"] > result["metrics_before"]["accuracy"] + 0.3
