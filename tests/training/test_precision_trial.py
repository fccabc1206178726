"""A few steps that show how long a step takes in a type, and how good its loss is."""

from math import inf, nan

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.training.precision_trial import PrecisionTrial, try_precision


def examples(rows=40):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 3)).astype("float32"), rng.normal(size=(rows, 1)).astype("float32")
    return Examples(x, y, x, y)


def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False, steps_per_execution=4)
    return made


def test_steps_are_made_on_the_same_rows_each_time_and_their_loss_is_their_mean():
    first, second = (try_precision(model(), examples(), batch_size=8, most_steps=7) for _ in range(2))
    assert (first.steps, first.first, first.loss) == (second.steps, second.first, second.loss)
    assert first.steps == 7
    assert first.loss < first.first
    assert 0 < first.milliseconds < 5000


def test_no_step_begins_when_the_time_is_over_and_few_rows_are_taken_again():
    assert try_precision(model(), examples(4), batch_size=4, most_seconds=0.0).steps == 2
    assert try_precision(model(), examples(4), batch_size=4, most_steps=5).steps == 5


@pytest.mark.parametrize(
    ("milliseconds", "is_faster"), [(8.9, True), (9.0, True), (9.1, False), (10.0, False), (30.0, False)]
)
def test_faster_is_what_saves_a_tenth(milliseconds, is_faster):
    other = PrecisionTrial(5, 10.0, 1.0, 0.5)
    assert PrecisionTrial(5, milliseconds, 1.0, 0.5).is_faster_than(other) is is_faster


@pytest.mark.parametrize(
    ("loss", "is_as_good"), [(0.5, True), (0.1, True), (0.519, True), (0.521, False), (nan, False), (inf, False)]
)
def test_as_good_is_a_loss_that_is_worse_by_a_fiftieth_at_most(loss, is_as_good):
    other = PrecisionTrial(5, 10.0, 1.0, 0.5)
    assert PrecisionTrial(5, 1.0, 1.0, loss).is_as_good_as(other) is is_as_good
    assert not PrecisionTrial(5, 1.0, 1.0, loss).is_as_good_as(PrecisionTrial(5, 1.0, 1.0, nan))
