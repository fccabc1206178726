import json
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune
from finetune import GroupedOptimizer
from finetune.training.time_limit import LEAST_FACTOR, TimeLimit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Seconds:
    """A clock that passes by one second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def fit(seconds, *, epochs=10, steps=10, rate=1e-2):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")])
    groups = {name: (keras.optimizers.SGD(r), model.get_layer(name)) for name, r in (("a", 1e-3), ("b", rate))}
    model.compile(GroupedOptimizer(groups), "mse")
    said, rates = [], []
    limit = TimeLimit(seconds, epochs * steps, said.append, Seconds())
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(dict(model.optimizer.learning_rates))
    )
    x, y = np.ones((steps, 2), "float32"), np.ones((steps, 1), "float32")
    model.fit(x, y, batch_size=1, epochs=epochs, verbose=0, callbacks=[limit, note])
    return limit, said, rates


def test_at_the_limit_the_training_ends_and_its_rates_have_fallen_in_a_straight_line_in_proportion():
    limit, said, rates = fit(50)
    assert limit.reached
    assert limit.steps_made == 46
    assert said == [
        "cooldown: the time limit of 50 seconds ends the training before its 100 steps are made; from step 41 on the "
        "rates fall to 0"
    ]
    values = [rate["b"] for rate in rates]
    fall = [value for value in values if value < 9e-3]
    np.testing.assert_allclose(fall, np.linspace(8e-3, 2e-3, 4), rtol=1e-4)
    assert all(rate["b"] == pytest.approx(10 * rate["a"]) for rate in rates)
    assert limit.factor == pytest.approx(LEAST_FACTOR)
    assert limit.summary() == (
        "The time limit of 50 seconds ended the training after 46 of 100 steps, with rates that fell to 0 in its last "
        "tenth. Allow more time, or train for fewer epochs."
    )


def test_a_training_that_ends_in_time_is_not_touched():
    limit, said, rates = fit(115)
    assert (limit.reached, limit.summary(), said, len(rates)) == (False, "", [], 100)
    assert {rate["b"] for rate in rates} == {np.float32(1e-2)}


def test_rates_that_their_schedule_has_cooled_down_are_left_alone():
    limit, said, _ = fit(50, rate=finetune.make_schedule("polynomial_decay", initial=1e-2, decay_steps=30, end=1e-5))
    assert (limit.reached, limit.cools, said) == (True, False, [])


def test_a_run_says_what_its_limit_has_cut_off_and_goes_on_with_more_time(recipe):
    settings = ["train.epochs=2000", "train.time_limit_seconds=1"]
    result = finetune.run(recipe, out="out", overrides=settings)
    [warning] = [text for text in result.warnings if "time limit" in text]
    assert "The time limit of 1 seconds ended the training after" in warning
    assert json.loads(Path("out/result.json").read_text())["warnings"] == list(result.warnings)
    epochs = len(Path("out/metrics.csv").read_text().splitlines()) - 1
    again = finetune.run(
        "out/recipe.yaml", out="out", resume=True, overrides=["train.time_limit_seconds=", f"train.epochs={epochs + 2}"]
    )
    assert not [text for text in again.warnings if "time limit" in text]
    assert len(Path("out/metrics.csv").read_text().splitlines()) - 1 == epochs + 2
    # What the limit has taken off the rates is given back.
    assert again.model.optimizer.learning_rates["head"] == pytest.approx(2e-2)
