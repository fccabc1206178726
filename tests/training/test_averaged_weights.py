import json
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune
from finetune.errors import RecipeError
from finetune.training.averaged_weights import CollectWeights, greedy_average, said_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def model_of(value):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.set_weights([np.full((1, 1), value)])
    return model


def collected(model, values, losses, **options):
    collect = CollectWeights(2, "val_loss", **options)
    collect.set_model(model)
    for epoch, (value, loss) in enumerate(zip(values, losses, strict=True)):
        model.set_weights([np.full((1, 1), value)])
        collect.on_epoch_end(epoch, {"val_loss": loss})
    return collect


def test_the_last_or_the_best_are_remembered():
    model = model_of(0.0)
    values, losses = [1.0, 2.0, 3.0, 4.0], [0.2, 0.1, 0.4, 0.3]
    assert [kept[:3] for kept in collected(model, values, losses).kept] == [(0.1, 2, 0), (0.2, 1, 0)]
    newest = collected(model, values, losses, newest=True)
    assert [kept[:3] for kept in newest.kept] == [(0.4, 3, 0), (0.3, 4, 0)]
    newest.on_evaluation(4, 2, {"val_loss": 0.0})
    assert len(newest.kept) == 2
    largest = collected(model, values, losses, mode="max")
    assert [kept[0] for kept in largest.kept] == [0.4, 0.3]


@pytest.mark.parametrize(
    ("values", "own", "taken", "end"),
    [((1.0, 3.0), 1.0, True, 2.0), ((1.5, 1.0), 1.9, False, 1.9), ((2.0, 9.0), 2.0, False, 2.0)],
)
def test_a_mean_is_taken_only_where_it_is_better(values, own, taken, end):
    model, calibrated = model_of(0.0), []
    loss = lambda: abs(float(model.get_weights()[0][0, 0]) - 2.0)  # noqa: E731 - the least is at 2
    collect = collected(model, values, [abs(value - 2.0) for value in values])
    model.set_weights([np.full((1, 1), own)])
    result = greedy_average(model, collect, loss, lambda: calibrated.append(1))
    assert (result["taken"], float(model.get_weights()[0][0, 0])) == (taken, pytest.approx(end))
    assert calibrated
    said = "averaged: the weights after epoch 1, epoch 2, with a val_loss of 0.0000 in place of 1.0000"
    assert said_of(result) == said if taken else said_of(result).startswith("not averaged: no mean has a better val_")


def test_what_is_equal_in_all_stays_bit_for_bit():
    model = model_of(0.1)
    collect = collected(model, [0.1] * 2, [1.0, 1.0])
    greedy_average(model, collect, lambda: 1.0, lambda: None)
    assert model.get_weights()[0] == np.float32(0.1)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["best", "last"])
def test_a_run_says_what_it_has_averaged(kind, recipe):
    settings = ["train.epochs=4", "train.validation_fraction=0.3", f"train.average={{{kind}: 3}}"]
    result = finetune.run(recipe, out="out", overrides=settings)
    stored = json.loads(Path("out/result.json").read_text())["averaged"]
    assert stored == result.averaged
    assert stored["monitor"] == "val_loss"
    assert stored["taken"] == bool(stored["of"])
    assert result.frozen_unchanged
    model = keras.models.load_model("out/model.keras")
    assert np.array_equal(model.get_weights()[-1], result.model.get_weights()[-1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{best: 1}", "must be 2 or more"),
        ("{}", "needs exactly one of `best`, `last`"),
        ("{best: 2, last: 2}", "needs exactly one of `best`, `last`"),
        ("{best: 2}", "no validation examples. Set `train.validation_fraction`"),
    ],
)
def test_wrong_averages_are_refused_with_their_place(setting, message, recipe):
    with pytest.raises(RecipeError) as error:
        finetune.run(recipe, overrides=[f"train.average={setting}"])
    assert message in str(error.value)
    assert str(error.value).startswith("--set train.average")
