"""Recipes for commands that need data in files, and run folders to look at."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import keras
import pytest
from PIL import Image

import finetune
from finetune.commands.run_result import RunResult
from finetune.training.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class RecordedRun:
    """A run of the tiny recipe, and copies of its folder; read only.

    Attributes:
        result: What the run has returned.
        folder: Its folder.
        copies: The folder as it was after each checkpoint.
    """

    result: RunResult
    folder: Path
    copies: list[Path]

    def finished(self, out="out"):
        """Copies the folder."""
        shutil.copytree(self.folder, out)

    def killed_at(self, number, out="out"):
        """Makes the folder that the process would have left if it had been killed after so many checkpoints."""
        shutil.copytree(self.copies[number - 1], out)


@pytest.fixture(scope="module")
def recorded(tiny_files, tmp_path_factory):
    """Runs the tiny recipe with overrides, once in a module for the same ones; returns a `RecordedRun`."""
    runs = {}

    def run(*overrides):
        if overrides not in runs:
            root, copies = tmp_path_factory.mktemp("recorded"), []
            write = Checkpoint._write

            def copied(self, position):
                write(self, position)
                copies.append(root / f"copy-{len(copies)}")
                shutil.copytree(root / "out", copies[-1], ignore=shutil.ignore_patterns(".lock"))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Checkpoint, "_write", copied)
                result = finetune.run(tiny_files / "tiny.yaml", out=root / "out", overrides=list(overrides))
            runs[overrides] = RecordedRun(result, root / "out", copies)
        return runs[overrides]

    return run


@pytest.fixture
def photos(tmp_path):
    """A recipe of 3 classes with 8 images each, of one colour a class, and a network for images of 8x8 pixels."""
    for name, colour in {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (12 + number, 10), colour).save(tmp_path / "photos" / name / f"{number}.png")
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, keras.layers.Dense(8, activation="relu", name="body")(pooled)).save(tmp_path / "net.keras")
    recipe = tmp_path / "photos.yaml"
    recipe.write_text("""
model: {keras_file: net.keras, head: {classes: auto}}
data: {images: photos/, split: {test: 0.25, validation: 0.25}, class_weight: balanced}
groups: [{name: body, prefixes: [body], frozen: true}, {name: head, rest: true, optimizer: adam, learning_rate: 0.1}]
train: {epochs: 20, batch_size: 4, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
""")
    return recipe


@pytest.fixture
def names_in():
    """Returns the names of what is in a folder."""
    return lambda folder: {path.name for path in Path(folder).iterdir()}


@pytest.fixture
def snapshot():
    """Returns the contents and times of all files in a folder."""

    def of(folder):
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return of


@pytest.fixture
def former_run(recipe):
    """A folder `out` in the working directory, as an older run and its user have left it."""
    folder = Path("out")
    for name in ("checkpoints", "plots"):
        (folder / name).mkdir(parents=True)
    (folder / "note.txt").write_text("mine")
    for name in ("recipe.yaml", "plan.txt", "model.keras", "result.json", "plots/training.png", "checkpoints/old.h5"):
        (folder / name).write_text("old")
    return folder
