import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune
from finetune.errors import RecipeError, TrainingError
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.keep_best import KeepBest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SETTINGS = [
    *("train.epochs=3", "train.validation_fraction=0.2", "train.steps_per_execution=2", "train.checkpoint_steps=1"),
    *("train.keep=best", "train.evaluate_every_steps=2", "train.batch_size=12"),
    # A rate at which the validation loss soon rises.
    "groups.head.learning_rate=0.7",
]


class KilledError(Exception):
    """What stands for a process that is killed."""


def rows(name):
    return list(csv.DictReader(Path(name).read_text().splitlines()))


def test_the_best_weights_are_those_of_the_best_evaluation_whenever_it_was():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    best = KeepBest("val_loss")
    best.set_model(model)
    best.on_train_begin()
    assert (best.restore(model), best.to_json()) == ("", None)
    for place, value in {(0, 5): 3.0, (0, 0): 2.0, (1, 5): 1.0, (1, 0): 4.0}.items():
        model.set_weights([np.full((1, 1), value)])
        if place[1]:
            best.on_evaluation(*place, {"val_loss": value})
        else:
            best.on_epoch_end(place[0], {"loss": 0.0, "val_loss": value})
    best.on_train_begin()  # of the next phase
    best.on_epoch_end(2, {"loss": 0.0})  # without validation
    assert best.restore(model) == "kept: the weights after step 5 of epoch 2, with the best val_loss, 1.0000"
    assert model.get_weights()[0] == 1.0
    assert best.to_json() == {"monitor": "val_loss", "value": 1.0, "epoch": 2, "step": 5}


def test_a_run_keeps_its_best_weights_also_when_it_was_killed(recipe, monkeypatch):
    straight = finetune.run(recipe, out="straight", overrides=SETTINGS)
    write, left = Checkpoint._write, [7]

    def counted(self, position):
        write(self, position)
        left[0] -= 1
        if not left[0]:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_write", counted)
        with pytest.raises(TrainingError):
            finetune.run(recipe, out="out", overrides=SETTINGS)
    resumed = finetune.run("out/recipe.yaml", out="out", resume=True)
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(f"out/{name}") == rows(f"straight/{name}")
    assert resumed.kept == straight.kept == json.loads(Path("out/result.json").read_text())["kept"]
    pairs = zip(resumed.model.get_weights(), straight.model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    # Two in each epoch of 4 steps but at its end, which is a row of `metrics.csv`; and the best of all is kept.
    evaluations, epochs = rows("straight/evaluations.csv"), rows("straight/metrics.csv")
    assert [(row["epoch"], row["step"]) for row in evaluations] == [("1", "2"), ("2", "2"), ("3", "2")]
    losses = [float(row["val_loss"]) for row in (*evaluations, *epochs)]
    assert straight.kept["value"] == pytest.approx(min(losses))
    model = keras.models.load_model("straight/model.keras")
    assert np.array_equal(model.get_weights()[-1], straight.model.get_weights()[-1])
    # Evaluating leaves no trace in the training.
    plain = [text for text in SETTINGS if "evaluate" not in text and "keep" not in text]
    finetune.run(recipe, out="plain", overrides=plain)
    assert rows("plain/metrics.csv") == epochs


@pytest.mark.grid
def test_evaluations_leave_no_trace_where_a_run_chooses_the_steps_of_a_call(recipe):
    settings = ["train.epochs=2", "train.validation_fraction=0.2", "train.batch_size=6"]
    plain = finetune.run(recipe, out="plain", overrides=settings)
    watched = finetune.run(recipe, out="watched", overrides=[*settings, "train.evaluate_every_steps=3"])
    assert rows("watched/metrics.csv") == rows("plain/metrics.csv")
    assert watched.metrics == plain.metrics
    # Of 8 steps.
    assert [row["step"] for row in rows("watched/evaluations.csv")] == ["3", "6"] * 2


@pytest.mark.parametrize("key", ["keep=best", "evaluate_every_steps=2"])
def test_without_validation_rows_nothing_can_be_best(key, recipe):
    with pytest.raises(RecipeError) as error:
        finetune.run(recipe, overrides=[f"train.{key}"])
    assert f"--set train.{key.split('=')[0]}: `train.{key.split('=')[0]}` " in str(error.value)
    assert "there are no validation examples. Set `train.validation_fraction`" in str(error.value)
