import csv
import json
import subprocess
import sys
import zipfile
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.checksum import checksum
from finetune.errors import FinetuneError
from finetune.groups.layer_tree import layer_tree
from finetune.recipe.loader import load_recipe

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tiny_files, tmp_path_factory):
    """One finished run with its former weights: restored, a frozen group, validation rows, and what was told."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    keras.models.load_model(tiny_files / "tiny.keras").save_weights(folder.parent / "tiny.weights.h5")
    told = StringIO()
    overrides = [
        f"restore={{from: {folder.parent / 'tiny.weights.h5'}, exclude: [head]}}",
        "train.validation_fraction=0.2",
        "train.epochs=3",
    ]
    recipe = tiny_files / "tiny.yaml"
    result = finetune.run(recipe, folder, overrides=overrides, console=Console(file=told, width=200))
    return result, told.getvalue(), load_recipe(recipe, overrides=overrides)


def read_json(path):
    return json.loads(path.read_text())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- What a run leaves behind -----------------------------------------------------------------------------------------


def test_a_run_folder_holds_every_file_that_is_promised_and_no_other(finished, names_in):
    result, _, _ = finished
    assert names_in(result.folder) == {
        *("recipe.yaml", "plan.txt", "plan.json", "restore.json", "metrics.csv", "tensorboard", "checkpoints"),
        *("environment.json", "report.json", "predictions.npz", "report.html", "model_card.md", "hashes.json"),
        *("data.json", "model.keras", "result.json", "plots", "run.log"),
    }
    assert names_in(result.folder / "plots") == {"training.png", "training.svg"}
    kept = names_in(result.folder / "checkpoints")
    assert {name.split("-")[0] for name in kept} == {"last.weights.h5", "step"}
    assert len(kept) == 2
    assert names_in(result.folder / "tensorboard") == {"train", "validation"}


def test_the_result_is_in_a_file_and_in_what_is_returned(finished):
    result, _, _ = finished
    stored = read_json(result.folder / "result.json")
    assert set(stored) == {
        "format",
        "batch_size",
        "metrics",
        "metrics_before",
        "metrics_of_mean",
        "classes",
        "frozen_unchanged",
        "frozen_tensors",
        "seconds",
        "kernels",
    }
    assert stored["metrics"] == result.metrics
    assert stored["metrics_before"] == result.metrics_before
    assert stored["metrics_of_mean"] == result.metrics_of_mean
    assert 0 < result.metrics_of_mean["accuracy"] < 1
    assert stored["classes"] == result.classes
    of_classes = result.classes[""].values()
    hits = sum(of["rows"] * (of["recall"] or 0) for of in of_classes)
    assert hits / sum(of["rows"] for of in of_classes) == pytest.approx(result.metrics["accuracy"])
    assert list(stored["metrics"]) == ["loss", "accuracy"]
    assert (stored["frozen_unchanged"], stored["frozen_tensors"]) == (True, 6)
    assert set(stored["seconds"]) == {"load", "prepare", "evaluate", "train", "save", "plot", "report"}


def test_the_metrics_of_the_result_are_those_of_the_returned_model(finished, rows):
    result, _, _ = finished
    x, y = rows
    outputs = result.model.predict(x[60:], verbose=0)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(outputs.argmax(axis=1) == y[60:]))


def test_metrics_and_the_rate_of_every_group_are_kept_for_every_epoch(finished):
    table = rows_of(finished[0].folder / "metrics.csv")
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert set(table[0]) == {
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy"),
        *("learning_rate/body", "learning_rate/head"),
    }
    halvings = np.array([3, 6, 9]) // 4  # 48 rows are 3 batches of 16; the rate falls every 4 steps
    np.testing.assert_allclose([float(row["learning_rate/body"]) for row in table], 1e-2 * 0.5**halvings, rtol=1e-6)
    np.testing.assert_allclose([float(row["learning_rate/head"]) for row in table], 2e-2, rtol=1e-6)


def test_the_recipe_in_the_folder_is_the_one_that_ran_wherever_it_is_read(finished, tmp_path, monkeypatch):
    result, _, wanted = finished
    monkeypatch.chdir(tmp_path)
    stored = load_recipe(result.folder / "recipe.yaml")
    assert stored.model_dump(exclude={"model", "data", "restore"}) == wanted.model_dump(
        exclude={"model", "data", "restore"}
    )
    assert Path(stored.model.keras_file).is_absolute()
    assert stored.restore.exclude == ("head",)


def test_what_was_restored_is_kept_with_checksums(finished):
    stored = read_json(finished[0].folder / "restore.json")
    assert len(stored["restored"]) == 8
    assert set(stored["excluded"]) == {"head/kernel", "head/bias"}
    assert stored["missing"] == stored["unused"] == stored["shape_conflict"] == []
    assert all(weight["after"] == weight["file"] for weight in stored["restored"])


def test_the_plan_is_kept_as_text_and_as_data(finished):
    folder = finished[0].folder
    stored = read_json(folder / "plan.json")
    assert (stored["steps"], len(stored["weights"])) == (9, 10)
    text = (folder / "plan.txt").read_text()
    assert all(weight["name"] in text for weight in stored["weights"])


def test_what_is_printed_is_where_weights_came_from_the_plan_every_epoch_and_the_results(finished):
    lines = finished[1].splitlines()
    assert lines[0] == "model: tiny, 187 parameters"
    assert lines[1].startswith("8 weights restored from ")
    assert lines[2].endswith(" in the first rows; `stem` takes them as they are")
    assert lines[3].startswith("plan: 3 epochs of 3 steps.")
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    report = next(number for number, line in enumerate(lines) if line.startswith("report:"))
    starts = [line.partition(":")[0] for line in lines[report + 1 :]]
    assert starts[:4] == ["kept to train for longer", "test loss", "test accuracy", "without inputs"]
    assert lines[-1] == "proof: all 6 frozen tensors are bit-identical to the start"


def test_frozen_tensors_are_bit_identical_and_all_others_trained(finished, tiny_files):
    start = layer_tree(keras.models.load_model(tiny_files / "tiny.keras")).by_name
    for leaf in layer_tree(finished[0].model).leaves:
        same = checksum(leaf.variable) == checksum(start[leaf.name].variable)
        assert same == leaf.name.startswith(("stem/", "bn/")), leaf.name


def test_the_saved_model_names_nothing_of_finetune(finished):
    with zipfile.ZipFile(finished[0].folder / "model.keras") as file:
        assert b"finetune" not in file.read("config.json")
        assert b"finetune" not in file.read("model.weights.h5")


PLAIN_KERAS = """
import sys
import keras, numpy
model = keras.models.load_model(sys.argv[1])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2]), verbose=0))
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
"""


@pytest.mark.slow
def test_the_model_opens_where_finetune_is_not_and_predicts_the_same(finished, rows, tmp_path):
    result, _, _ = finished
    np.save(tmp_path / "x.npy", rows[0])
    command = [sys.executable, "-c", PLAIN_KERAS, result.folder / "model.keras", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), result.model.predict(rows[0], verbose=0))


def test_the_last_weights_are_those_of_the_model(finished, tiny):
    result, _, _ = finished
    again = tiny()
    again.load_weights(result.folder / "checkpoints" / "last.weights.h5", skip_mismatch=False)
    for one, other in zip(result.model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_returned_model_can_be_trained_further(finished, rows):
    model = finished[0].model
    steps = int(model.optimizer.iterations)
    model.fit(*rows, batch_size=45, verbose=0)
    assert int(model.optimizer.iterations) == steps + 2


# -- The same again ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_out_runs_are_numbered_and_the_same_seed_gives_the_same_result_and_another_another(recipe):
    first, second = (finetune.run(recipe, overrides=["train.epochs=1"]) for _ in range(2))
    assert [first.folder, second.folder] == [Path("runs/tiny-1"), Path("runs/tiny-2")]
    assert first.metrics == second.metrics
    for one, same in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    other = finetune.run(recipe, overrides=["train.epochs=1", "seed=4"])
    assert other.metrics["loss"] != first.metrics["loss"]


def test_a_second_run_into_the_same_folder_is_refused_before_any_work_and_touches_nothing(recipe, finished, snapshot):
    folder = finished[0].folder
    before = snapshot(folder)
    told = StringIO()
    with pytest.raises(FinetuneError, match="is not empty"):
        finetune.run(recipe, folder, console=Console(file=told))
    assert told.getvalue() == ""
    assert snapshot(folder) == before


# -- Settings that change how the run goes ----------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.global_clipnorm=1.0", "train.gradient_accumulation_steps=2", "train.use_ema=true"],
        ["train.steps_per_execution=3", "train.validation_fraction=0.2"],
        ["train.jit_compile=true"],
        ["groups={by: layer, peak: 1e-2, decay: 2.6, optimizer: adamw, learning_rate: {schedule: one_cycle}}"],
        ["train.shuffle=false", "train.metrics=[]"],
    ],
)
@pytest.mark.slow
def test_a_run_goes_well_with(recipe, overrides):
    result = finetune.run(recipe, "out", overrides=overrides)
    assert result.frozen_unchanged
    assert result.frozen_tensors == (0 if "by: layer" in overrides[0] else 6)
    assert np.isfinite(result.metrics["loss"])
    assert result.metrics["loss"] != result.metrics_before["loss"]


# -- The plan alone ---------------------------------------------------------------------------------------------------


def test_a_plan_trains_nothing_and_writes_nothing(recipe, tiny_files, names_in):
    ready = finetune.plan(recipe)
    start = keras.models.load_model(tiny_files / "tiny.keras")
    for one, other in zip(ready.model.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert names_in(".") == {"tiny.yaml"}


def test_weights_of_a_model_file_count_as_restored_from_it(recipe, tiny_files):
    rows = finetune.plan(recipe).plan.weights
    assert {row.restored_from for row in rows} == {str(tiny_files / "tiny.keras")}


def test_the_plan_of_a_run_is_the_plan_that_was_shown(finished, tiny_files):
    result, _, wanted = finished
    restore = f"restore={{from: {wanted.restore.source}, exclude: [head]}}"
    overrides = [restore, "train.validation_fraction=0.2", "train.epochs=3"]
    shown = finetune.plan(tiny_files / "tiny.yaml", overrides=overrides).plan.to_json()
    assert read_json(result.folder / "plan.json") == json.loads(json.dumps(shown))


def test_a_folder_of_images_trains_without_code(photos):
    told = StringIO()
    result = finetune.run(
        photos, photos.parent / "out", overrides=["train.epochs=8"], console=Console(file=told, width=200)
    )
    assert result.metrics["accuracy"] == 1
    assert "data: 12 rows to train on, 6 to test, 6 to validate; 3 classes" in told.getvalue()
    described = read_json(result.folder / "data.json")
    assert described["class_names"] == ["blue", "green", "red"]
    assert described["rows_of_classes"]["test"] == [2, 2, 2]
    assert described["source"]["size"] == [8, 8]
    assert result.model.output_shape == (None, 3)


def test_why_the_fast_loop_was_not_used_is_printed_once_and_recorded(tiny_files, tmp_path):
    told = StringIO()
    overrides = [
        "train.jit_compile=true",
        "train.epochs=2",
        "phases=[{train: head, epochs: 1}, {train: all, epochs: 1}]",
    ]
    console = Console(file=told, width=200)
    result = finetune.run(tiny_files / "tiny.yaml", tmp_path / "out", overrides=overrides, console=console)
    sentence = "Keras' own loop made the steps, not the fast one: XLA compiles its step"
    assert told.getvalue().count(sentence) == 1
    recorded = read_json(tmp_path / "out/result.json")
    assert result.keras_loop == recorded["keras_loop"] == "XLA compiles its step"
    assert [phase["keras_loop"] for phase in recorded["phases"]] == ["XLA compiles its step"] * 2


def test_nothing_is_said_of_the_fast_loop_where_it_was_used(finished):
    result, told, _ = finished
    assert result.keras_loop == ""
    assert "own loop" not in told
    assert "keras_loop" not in read_json(result.folder / "result.json")


def test_the_result_says_which_layers_ran_native_kernels_and_exact_ones_have_the_bits_of_keras(recipe, finished):
    result, told, _ = finished
    assert result.native == {"layers": {"BatchNormalization": 1}, "functions": []}
    assert read_json(result.folder / "result.json")["kernels"] == {"native": result.native}
    assert read_json(result.folder / "plan.json")["native"] == {"BatchNormalization": 1, "Dense": 3}
    assert "kernels: native where they apply, in BatchNormalization (1), Dense (3)" in told
    assert "where they apply, in BatchNormalization (1), Dense (3)" in (result.folder / "plan.txt").read_text()
    exact = finetune.run(recipe, out="exact", overrides=["train.kernels=exact"])
    assert read_json(exact.folder / "result.json")["kernels"] == "exact"
    assert "native" not in read_json(exact.folder / "plan.json")
    assert exact.model.test_function is None  # a function of the run's would run its kernels
