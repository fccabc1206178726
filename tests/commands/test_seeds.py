"""`finetune run --seeds`."""

import json
from pathlib import Path

import pytest

import finetune
from finetune.commands.compare import compare
from finetune.commands.seeds import run_seeds
from finetune.errors import FinetuneError, TrainingError
from finetune.training.checkpoints.checkpoint import Checkpoint


def noted_recipe(run):
    """The recipe of a run as it was asked for."""
    return Checkpoint(run / "checkpoints").resumed.document["recipe"]


@pytest.mark.slow
def test_each_seed_has_a_process_and_a_folder_and_what_is_finished_is_not_run_again(recipe, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(finetune.__file__).parent.parent))  # the working folder is another
    settings = ["train.epochs=1", "train.batch_size=auto"]
    folder = run_seeds(recipe, None, 2, overrides=settings)
    assert "as measured with seed 3, for all seeds: `train.batch_size=8`" in capsys.readouterr().out
    assert "batch_size: 8\n" in noted_recipe(folder / "seed-4")
    assert [path.name for path in sorted(folder.iterdir())] == ["seed-3", "seed-4"]
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert len({json.loads(path.read_text())["metrics"]["loss"] for path in written}) == 2
    (folder / "seed-5").write_text("in the way")
    with pytest.raises(TrainingError, match=r"The run with the seed 5 has ended with the exit code 2"):
        run_seeds(recipe, folder, 3, overrides=settings)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == written
    assert [title.partition(",")[0] for title, *_ in compare([folder])][1] == "Mean of 2 seeds"


def test_a_single_seed_and_a_set_seed_are_refused(recipe):
    with pytest.raises(FinetuneError, match=r"`--seeds` runs a recipe with 2 to 1000 seeds. Received: 1."):
        run_seeds(recipe, None, 1)
    with pytest.raises(FinetuneError, match=r"`--seeds` counts on from the `seed` of the recipe"):
        run_seeds(recipe, None, 2, overrides=["seed=1"])
