import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import finetune
from finetune.cli import app
from finetune.commands.audit import audit
from finetune.commands.check import check
from finetune.commands.resume import check_same_data, check_same_start, find_former_run
from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.loader import load_recipe
from finetune.results.run_folder import is_finished
from finetune.training import batch_size
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import (
    Saved,
    checkpoint_files,
    read_checkpoint,
    write_checkpoint,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SETTINGS = [
    "train.epochs=3",
    "train.checkpoint_steps=1",
    "train.steps_per_execution=1",
    "train.validation_fraction=0.2",
]


def ended(folder):
    """Everything that a run has left, except for times."""
    result = json.loads(Path(folder, "result.json").read_text())
    result.pop("seconds")
    for phase in result.get("phases", []):
        phase.pop("seconds")
    rows = list(csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines()))
    # A checkpoint holds times, too, and its name the checksum of all.
    names = [path.name for path in Path(folder).rglob("*") if "tfevents" not in path.name]
    return result, rows, sorted("step" if name.startswith("step-") else name for name in names)


def weights(result):
    return [variable.numpy().tobytes() for variable in result.model.variables]


@pytest.fixture(scope="module")
def straight(recorded):
    """A run that was left alone."""
    return recorded(*SETTINGS)


@pytest.mark.sample(2)
@pytest.mark.parametrize("number", [1, 7, 8])
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(number, recipe, straight):
    straight.killed_at(number)
    place = Checkpoint("out/checkpoints").position
    said = StringIO()
    console = Console(file=said, width=200)
    resumed = finetune.run(recipe, out="out", overrides=SETTINGS, resume=True, console=console)
    assert (weights(resumed), ended("out")) == (weights(straight.result), ended(straight.folder))
    within = {0: " from", 3: ", after its last step from"}.get(place.step, f", step {place.step + 1} from")
    assert f"going on at epoch {place.epoch + 1}{within}" in said.getvalue(), place


def test_phases_that_were_over_keep_their_records(recipe, recorded):
    phases = "phases=[{train: [head], epochs: 1}, {train: all, steps: 5}, {train: all, epochs: 1}]"
    straight = recorded(*SETTINGS, "train.epochs=null", phases)
    straight.killed_at(9)
    resumed = finetune.run("out/recipe.yaml", out="out", resume=True)
    assert weights(resumed) == weights(straight.result)
    assert ended("out") == ended(straight.folder)
    assert [phase.number for phase in resumed.phases] == [1, 2, 3]


@pytest.mark.grid
def test_random_features_are_drawn_again_as_at_the_begin_of_the_phase(recipe, recorded):
    settings = [
        "groups=[{name: body, prefixes: [body], frozen: true}, {name: head, rest: true, optimizer: sgd, learning_rate: 0.01}]"
    ]
    settings += ["train.cache=memory", "train.cache_passes=2"]
    straight = recorded(*SETTINGS, *settings)
    straight.killed_at(6)
    assert weights(finetune.run("out/recipe.yaml", out="out", resume=True)) == weights(straight.result)


def test_without_a_run_one_begins_and_a_finished_one_is_not_trained_again(recipe):
    first = finetune.run(recipe, out="out", overrides=SETTINGS, resume=True)
    assert len(checkpoint_files(Path("out/checkpoints"))) == 1, "kept to train for longer"
    assert first.folder == Path("out")
    with pytest.raises(FinetuneError, match="the run in `out` is finished, and is not trained again"):
        finetune.run(recipe, out="out", overrides=SETTINGS, resume=True)
    done = CliRunner().invoke(app, ["resume", "out"])
    assert (done.exit_code, "is finished" in done.output) == (0, True)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(recipe, straight):
    straight.killed_at(1)
    shutil.rmtree("out/checkpoints")
    assert weights(finetune.run(recipe, out="out", overrides=SETTINGS, resume=True)) == weights(straight.result)


def test_without_checkpoints_a_run_has_its_hashes_before_they_are_removed(recipe, monkeypatch):
    def kill(self, *, keep):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "remove", kill)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(recipe, "out", overrides=[*SETTINGS, "train.keep_checkpoints=false"])
    assert is_finished(Path("out"))
    assert (audit(Path("out")).holds, len(audit(Path("out")).added)) == (True, 2)
    Checkpoint("out/checkpoints").remove()
    assert (audit(Path("out")).holds, audit(Path("out")).added) == (True, ())


@pytest.mark.parametrize(("keep", "files"), [("true", 2), ("false", 0)])
def test_of_a_finished_run_the_last_checkpoint_stays_or_two_or_none(keep, files, recipe):
    said = StringIO()
    settings = [*SETTINGS, "train.epochs=1", f"train.keep_checkpoints={keep}"]
    finetune.run(recipe, out="out", overrides=settings, console=Console(file=said, width=200))
    assert len(checkpoint_files(Path("out/checkpoints"))) == files
    assert ("kept to train for longer: " in said.getvalue()) == (files > 0)


def test_a_run_whose_files_were_moved_goes_on_at_their_place_with_the_same_bits(recipe, straight, tiny_files):
    straight.killed_at(7)
    shutil.copytree(tiny_files, "files")
    shutil.move("files/tiny.keras", "files/renamed.keras")
    written = Path("out/recipe.yaml").read_text()
    Path("out/recipe.yaml").write_text(written.replace(str(tiny_files), str(Path("gone").absolute())))
    shutil.copy("files/rows.npz", ".")
    with pytest.raises(
        RecipeError, match=r"`data.npz` does not exist: .*`, if it was moved: `--set data.npz=/.*rows.npz`"
    ):
        check("out/recipe.yaml")
    moved = ["model.keras_file=files/renamed.keras", "data.npz=rows.npz"]
    said = StringIO()
    resumed = finetune.run(
        "out/recipe.yaml", "out", overrides=moved, resume=True, console=Console(file=said, width=300)
    )
    assert (weights(resumed), ended("out")) == (weights(straight.result), ended(straight.folder))
    assert "files lie elsewhere, with the content that they had: `model.keras_file`, `data.npz`" in said.getvalue()
    assert load_recipe("out/recipe.yaml").model.keras_file == str(Path("files/renamed.keras").absolute())


def test_a_file_with_another_content_is_no_moved_file(recipe, straight, tiny_files):
    straight.killed_at(2)
    model = keras.models.load_model(tiny_files / "tiny.keras")
    model.weights[0].assign(model.weights[0] + 1)
    model.save("other.keras")
    with pytest.raises(
        FinetuneError, match=r"`model.keras_file`: was .*: the file there has another content than that"
    ):
        finetune.run("out/recipe.yaml", "out", overrides=["model.keras_file=other.keras"], resume=True)


def test_how_often_checkpoints_are_written_is_no_change(recipe, straight):
    straight.killed_at(8)
    # How often checkpoints are written changes no result.
    finetune.run(recipe, out="out", overrides=[*SETTINGS, "train.checkpoint_steps=3"], resume=True)


def test_other_data_and_another_network_are_refused():
    with pytest.raises(FinetuneError, match=r"`rows\.train`: was 10, is 11"):
        check_same_data(Path("out"), {"rows": {"train": 10}}, {"rows": {"train": 11}})
    with pytest.raises(FinetuneError, match="1 of 2 frozen tensors are others now, such as `b`"):
        check_same_start(Path("out"), {"a": "1", "b": "2"}, {"a": "1", "b": "3"})


def test_a_run_whose_loss_was_chosen_by_its_table_is_trained_for_longer(tmp_path):
    (tmp_path / "rows.csv").write_text("a,kind\n" + "".join(f"{n},{'xy'[n % 2]}\n" for n in range(12)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {builder: 'finetune.examples.networks:mlp', arguments: {units: [2]}, head: {classes: auto}}\n"
        "data: {table: rows.csv, inputs: [a], target: kind}\n"
        "groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 0.1}]\n"
        "train: {epochs: 1, batch_size: 4}\nreport: off\n"
    )
    finetune.run(recipe, out=tmp_path / "out")
    longer = finetune.run(recipe, out=tmp_path / "out", overrides=["train.epochs=2"], resume=True)
    assert len((longer.folder / "metrics.csv").read_text().splitlines()) == 3


def test_why_the_loss_was_chosen_and_what_is_warned_of_are_no_changes_of_the_data():
    single = {"source": {"target": {"kind": "classes", "reason": "3 classes"}}}
    check_same_data(Path("out"), single, {"source": {"target": {"kind": "classes"}}})
    several = {
        "source": {"target": {"animal": {"kind": "classes", "reason": "2 classes"}, "reason": {"kind": "numbers"}}}
    }
    check_same_data(
        Path("out"), several, {"source": {"target": {"animal": {"kind": "classes"}, "reason": {"kind": "numbers"}}}}
    )
    check_same_data(Path("out"), single, {"source": {**single["source"], "warnings": ["of another version"]}})
    with pytest.raises(FinetuneError, match=r"`source\.target\.kind`: was classes, is numbers"):
        check_same_data(Path("out"), single, {"source": {"target": {"kind": "numbers", "reason": "3 classes"}}})


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(recipe, straight):
    straight.killed_at(6)
    newest = checkpoint_files(Path("out/checkpoints"))[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    said = StringIO()
    resumed = finetune.run("out/recipe.yaml", out="out", resume=True, console=Console(file=said, width=300))
    assert weights(resumed) == weights(straight.result)
    assert (
        f"warning: `{newest}` is damaged (its content is not what was written), so the checkpoint before"
        in said.getvalue()
    )


def test_checkpoints_that_no_run_has_written_are_refused_with_the_file_and_the_name(recipe, straight):
    straight.killed_at(6)
    given = load_recipe("out/recipe.yaml")
    for path in checkpoint_files(Path("out/checkpoints")):
        sound = read_checkpoint(path)
        path.unlink()
    noted = sound.document["more"]
    for more, message in (
        (noted | {"seconds": {"train": "x"}}, r'`seconds.train` must be a number, and is "x"'),
        (noted | {"resolved": "a: ["}, "`resolved` is no recipe: while parsing"),
        (noted | {"plan_of_phases": [[1]]}, r"`plan_of_phases.0` must be a list of 4 values"),
        ({}, "was not written by a run"),
    ):
        path = write_checkpoint(Path("out/checkpoints"), Saved(sound.arrays, sound.document | {"more": more}), steps=9)
        with pytest.raises(FinetuneError, match=message) as caught:
            find_former_run(Path("out"), given, of_run=True)
        assert f"`{path}`" in str(caught.value)
        path.unlink()
    crafted = Saved(sound.arrays, sound.document | {"position": {"epoch": "x"}})
    path = write_checkpoint(Path("out/checkpoints"), crafted, steps=9)
    with pytest.raises(
        FinetuneError, match=r"Of 1 checkpoint in `out/checkpoints` none is: .*`position.epoch` must be"
    ):
        find_former_run(Path("out"), given, of_run=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tiny.yaml", "--resume"], "Name the folder with `--out`"),
        (["run", "tiny.yaml", "--resume", "--overwrite", "--out", "out"], "Remove one of the two"),
        (["resume", "nowhere"], "`nowhere` is no run folder"),
    ],
)
def test_wrong_options_are_answered_before_tensorflow_starts(arguments, message, recipe):
    done = CliRunner().invoke(app, arguments)
    assert message in str(done.exception)


def test_a_folder_with_other_files_is_refused(recipe, tmp_path):
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("")
    with pytest.raises(FinetuneError, match=r"`--out thesis` is not empty"):
        finetune.run(recipe, out="thesis", resume=True)
    with pytest.raises(FinetuneError, match="holds other files and no run"):
        find_former_run(Path("thesis"), load_recipe(recipe))


@pytest.mark.slow
def test_a_process_that_is_killed_and_one_that_is_told_to_end_go_on(recipe):
    command = [sys.executable, "-m", "finetune"]
    options = [text for setting in (*SETTINGS, "train.epochs=30") for text in ("--set", setting)]
    environment = os.environ | {"PYTHONPATH": str(Path(finetune.__file__).parents[1])}
    asked = ["run", "tiny.yaml", "--out", "out", *options]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = checkpoint_files(Path("out/checkpoints"))
        running = subprocess.Popen([*command, *asked], stdout=subprocess.DEVNULL, env=environment)
        while checkpoint_files(Path("out/checkpoints")) == before and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(number)
        assert running.wait() == code
        asked = ["resume", "out"]
    place = Checkpoint("out/checkpoints").position
    assert place.epoch < 30
    done = CliRunner().invoke(app, asked)  # in this process, which saves the seconds that TensorFlow takes to start
    assert done.exit_code == 0, done.output
    assert f"going on at epoch {place.epoch + 1}" in done.output
    rows = list(csv.DictReader(Path("out/metrics.csv").read_text().splitlines()))
    np.testing.assert_array_equal([int(row["epoch"]) for row in rows], np.arange(1, 31))


def bits(result):
    return [variable.numpy().tobytes() for variable in (*result.model.variables, *result.model.optimizer.variables)]


def test_a_measured_batch_size_is_that_of_the_run_and_of_all_that_goes_on_with_it(recipe, monkeypatch):
    auto = ["train.batch_size=auto", "train.validation_fraction=0.2"]
    first = finetune.run(recipe, out="out", overrides=[*auto, "train.epochs=1"])
    assert (first.batch_size, load_recipe("out/recipe.yaml").train.batch_size) == (8, 8)
    assert json.loads(Path("out/result.json").read_text())["batch_size"] == 8
    number = finetune.run(recipe, out="number", overrides=[*auto, "train.epochs=1", "train.batch_size=8"])
    assert bits(first) == bits(number)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 0)  # as if it had run out since
    longer = finetune.run(recipe, out="out", overrides=[*auto, "train.epochs=2"], resume=True)
    assert longer.batch_size == 8


def test_a_run_that_is_killed_while_it_writes_its_report_is_not_finished_and_ends_when_it_goes_on(recipe, monkeypatch):
    class KilledError(BaseException):
        """What stands for a process that is killed."""

    def kill(*arguments):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("finetune.commands.run.write_page", kill)
        with pytest.raises(KilledError):
            finetune.run(recipe, "out")
    assert Path("out/result.json").exists()
    assert not is_finished(Path("out"))
    before = json.loads(Path("out/result.json").read_text())
    for name in (".writing-hashes.json", "checkpoints/.writing-last.weights.h5"):  # as a later moment leaves them
        Path("out", name).write_text("{")
    finetune.run(recipe, "out", resume=True)
    assert is_finished(Path("out"))
    assert audit(Path("out")).holds
    assert not list(Path("out").rglob(".writing-*"))
    assert Path("out/report.html").exists()
    after = json.loads(Path("out/result.json").read_text())
    assert before["metrics"] == after["metrics"]
    with pytest.raises(FinetuneError, match="is finished, and is not trained again"):
        finetune.run(recipe, "out", resume=True)
