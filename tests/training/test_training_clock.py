"""The clock of a rehearsal: what it measures, and when it ends a phase."""

import time

import keras
import numpy as np
import pytest

from finetune.training.training_clock import TrainingClock


class Sleeps(keras.callbacks.Callback):
    """Takes a known time in each part of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)

    def on_test_batch_end(self, batch, logs=None):
        time.sleep(0.05)

    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.1)


def fitted(clock, sleeps=None, epochs=9, validation_batch_size=6, **compiled):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False, **compiled)
    x, y = np.ones((12, 3), "float32"), np.ones((12, 1), "float32")
    clock.begin_phase(None)
    options = {"epochs": epochs, "batch_size": 4, "verbose": 0, "validation_data": (x, y)}
    options["validation_batch_size"] = validation_batch_size
    model.fit(x, y, callbacks=[sleeps or Sleeps(), clock], **options)
    return clock.phases[-1]


def test_steps_validation_and_the_rest_of_an_epoch_are_told_apart():
    begun = time.perf_counter()
    times = fitted(TrainingClock(seconds=0.5))
    # Each part has its own, and together they are no more than the time that went by.
    assert sum(epoch.total for epoch in times.epochs) <= time.perf_counter() - begun
    for epoch in times.epochs:
        assert epoch.steps >= 3 * 0.02
        assert epoch.validation >= 2 * 0.05
        assert epoch.rest >= 0.1
        assert epoch.total == epoch.steps + epoch.validation + epoch.rest
    assert len(times.step_seconds) == 3 * (len(times.epochs) - 1)
    assert min(times.step_seconds) >= 0.02


class BeginsSlowly(keras.callbacks.Callback):
    """Takes longer in the first call of an epoch, and of a validation."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.3 if batch == 0 else 0.02)

    def on_test_batch_end(self, batch, logs=None):
        time.sleep(0.2 if batch == 0 else 0.01)


def test_what_the_first_call_takes_longer_comes_once_in_an_epoch():
    clock = TrainingClock(seconds=60.0)
    for epoch in fitted(clock, BeginsSlowly(), epochs=3, validation_batch_size=4).epochs[1:]:
        assert 0.1 < epoch.begin < epoch.steps - 2 * 0.02
        assert 0.1 < epoch.validation_begin < epoch.validation - 2 * 0.01
    for epoch in fitted(clock, epochs=2, steps_per_execution=2).epochs:  # of two calls it is not known which is usual
        assert epoch.begin == epoch.validation_begin == 0


def test_a_phase_ends_when_its_epochs_after_the_first_took_long_enough():
    times = fitted(TrainingClock(seconds=0.5))
    measured = [epoch.total for epoch in times.epochs[1:]]
    assert sum(measured) >= 0.5 > sum(measured[:-1])
    assert len(fitted(TrainingClock(seconds=0.0)).epochs) == 2
    assert len(fitted(TrainingClock(seconds=60.0), epochs=3).epochs) == 3


def test_each_phase_is_measured_anew():
    clock = TrainingClock(seconds=0.0)
    first, second = fitted(clock), fitted(clock)
    assert clock.phases == [first, second]


def test_a_call_of_several_steps_counts_as_so_many():
    times = fitted(TrainingClock(seconds=0.0), steps_per_execution=3)
    assert len(times.step_seconds) == 1
    assert times.step_seconds[0] == pytest.approx(times.epochs[1].steps / 3)
