"""What the training of a run makes: its phases, its end, and the weights that are then evaluated."""

import csv
import json
from pathlib import Path

import keras
import pytest

import finetune

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_what_is_evaluated_after_training_is_every_test_row(recipe, rows):
    result = finetune.run(recipe, out="out")
    x, y = rows
    reloaded = keras.models.load_model("out/model.keras")
    reloaded.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    again = reloaded.evaluate(x[60:], y[60:], batch_size=7, verbose=0, return_dict=True)
    assert result.metrics["accuracy"] == pytest.approx(again["accuracy"], abs=1e-6)
    assert result.metrics["loss"] == pytest.approx(again["loss"], abs=1e-5)


def test_a_phase_of_steps_makes_just_these(recipe):
    overrides = ["phases=[{train: head, steps: 3}, {train: all, steps: 6}]", "train.epochs=null"]
    finetune.run(recipe, out="out", overrides=overrides)
    told = json.loads(Path("out/result.json").read_text())["phases"]
    assert [phase["steps"] for phase in told] == [3, 6]


@pytest.fixture(scope="module")
def weights_of_first_epoch(tiny_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "out"
    return finetune.run(tiny_files / "tiny.yaml", out=out, overrides=["train.epochs=1"]).model.get_weights()


@pytest.mark.parametrize(("best", "words"), [("false", ""), ("true", ", and the weights of its best epoch are back")])
def test_a_run_without_phases_ends_when_its_metric_no_longer_gets_better(recipe, best, words, weights_of_first_epoch):
    from io import StringIO

    from rich.console import Console

    said = StringIO()
    until = f"train.until={{monitor: loss, min_delta: 100, patience: 1, restore_best: {best}}}"
    settings = ["train.epochs=9", until]
    result = finetune.run(recipe, out="out", overrides=settings, console=Console(file=said, width=200))
    rows = list(csv.DictReader(Path("out/metrics.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert f"training ended 7 epochs early: `loss` no longer got better{words}\n" in said.getvalue()
    pairs = zip(result.model.get_weights(), weights_of_first_epoch, strict=True)
    assert all((one == other).all() for one, other in pairs) == (best == "true")
