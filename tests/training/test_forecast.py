"""The arithmetic of a forecast: what grows with the run, and what does not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.training.forecast import Share, forecast_phase, forecast_run
from finetune.training.phases.phase import Phase
from finetune.training.rehearsal import Rehearsal
from finetune.training.run_fit import FitOptions
from finetune.training.training_clock import EpochTimes, PhaseTimes

MEASURED = PhaseTimes(
    epochs=[EpochTimes(5.0, 3.0, 0.3), EpochTimes(1.0, 0.5, 0.1), EpochTimes(1.2, 0.4, 0.2), EpochTimes(0.8, 0.6, 0.3)],
    step_seconds=[0.1, 0.125, 0.0875, 0.1],
)
TENTH, HALF = Share(10, 100), Share(5, 10)


def phase_of(times=MEASURED, seconds=20.0, epochs=3, **options):
    return forecast_phase(times, seconds=seconds, epochs=epochs, steps=TENTH, rows=TENTH, validation=HALF, **options)


def test_steps_and_validation_grow_with_their_number_and_the_rest_stays():
    forecast = phase_of()
    assert forecast.epoch_seconds == pytest.approx(1.0 * 10 + 0.5 * 2 + 0.2)
    assert forecast.validation_seconds == pytest.approx(1.0)
    # Of the 20 seconds four epochs of 1.7 are none that come once.
    assert forecast.once_seconds == pytest.approx(20.0 - 4 * 1.7)
    assert forecast.seconds == pytest.approx(forecast.once_seconds + 3 * 11.2)
    assert forecast.features_bytes == 0


def test_the_beginning_of_an_epoch_does_not_grow_with_its_steps():
    epochs = [MEASURED.epochs[0], *(replace(epoch, begin=0.25) for epoch in MEASURED.epochs[1:])]
    forecast = phase_of(replace(MEASURED, epochs=epochs))
    assert forecast.epoch_seconds == pytest.approx(0.75 * 10 + 0.5 * 2 + 0.2 + 0.25)
    assert forecast.once_seconds == pytest.approx(phase_of().once_seconds)


def test_the_beginning_of_a_validation_does_not_grow_with_its_rows_and_comes_in_each_within_an_epoch():
    epochs = [replace(epoch, validation_begin=0.1) for epoch in MEASURED.epochs]
    forecast = phase_of(replace(MEASURED, epochs=epochs), validations=3)
    assert forecast.validation_seconds == pytest.approx(3 * (0.4 * 2 + 0.1))
    assert forecast.epoch_seconds == pytest.approx(1.0 * 10 + forecast.validation_seconds + 0.2)


def test_the_spread_is_that_of_the_quarters_of_the_steps():
    forecast = phase_of()
    low, middle, high = np.quantile(MEASURED.step_seconds, [0.25, 0.5, 0.75])
    assert forecast.most_seconds - forecast.epoch_seconds == pytest.approx(10.0 * (high / middle - 1))
    assert forecast.epoch_seconds - forecast.least_seconds == pytest.approx(10.0 * (1 - low / middle))
    single = phase_of(PhaseTimes(epochs=[EpochTimes(1.0, 0.0, 0.0)]), seconds=3.0)
    assert single.least_seconds == single.most_seconds == single.epoch_seconds == 10.0
    assert single.once_seconds == 2.0


def test_features_are_computed_once_for_all_rows_and_kept_in_memory():
    features = SimpleNamespace(passes=2, seconds=4.0, batch_seconds=0.1, nbytes=1000, place="memory")
    forecast = phase_of(replace(MEASURED, features=features))
    assert forecast.once_seconds == pytest.approx(phase_of().once_seconds + 2 * 90 * 0.1)
    assert forecast.features_bytes == 10_000
    on_disk = SimpleNamespace(**vars(features) | {"place": "disk"})
    assert phase_of(replace(MEASURED, features=on_disk)).features_bytes == 0


def test_rows_that_are_decoded_once_make_the_first_epoch_longer():
    assert phase_of(decoding_seconds=7.0).once_seconds == pytest.approx(phase_of().once_seconds + 7.0)


def test_a_run_is_its_phases_two_evaluations_and_what_comes_before_and_after(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1000, 4))
    kept = {"keep": {"place": "memory", "bytes": 5000}}
    examples = Examples(x, np.zeros(1000), np.zeros((60, 4)), np.zeros(60), source=kept)
    few = Examples(np.zeros((100, 4)), np.zeros(100), np.zeros((30, 4)), np.zeros(30))
    options = FitOptions(4, 100, 10, True, 0, "auto", 1, 1, False)
    records = [SimpleNamespace(seconds=20.0), SimpleNamespace(seconds=20.0)]
    rehearsal = Rehearsal(few, 10, [MEASURED, MEASURED], records, 2.0, 0.5, 3.0, 10**6)
    phases = [Phase(epochs=3), Phase(steps=50)]
    forecast = forecast_run(rehearsal, phases, examples, options, other_seconds=1.0, row_seconds=0.001)
    first, second = forecast.phases
    assert second.epochs == 0.5
    assert (first.validation_seconds, forecast.phases[1].validation_seconds) == (0.0, 0.0)
    assert first.once_seconds - second.once_seconds == pytest.approx(0.9)  # 900 rows are decoded in the first phase
    assert forecast.seconds == pytest.approx(1.0 + 2.0 + 2 * 0.5 * 2 + 3.0 + first.seconds + second.seconds)
    assert forecast.memory_bytes == pytest.approx(10**6 + 0.9 * 5000 + x.nbytes)
    # Trainings of a search compile an evaluation each; the first of them decodes the rows.
    searched = forecast_run(rehearsal, phases, examples, options, other_seconds=1.0, row_seconds=0.001, searches=3)
    assert searched.search_seconds == pytest.approx(3 * (2.0 + first.seconds + second.seconds - 0.9))
    assert searched.seconds == pytest.approx(forecast.seconds + searched.search_seconds)
    assert forecast.search_seconds == 0


@pytest.mark.parametrize(("every", "validations"), [(None, 1), (30, 4), (50, 2), (100, 1), (500, 1)])
def test_validation_within_an_epoch_is_counted(every, validations):
    x, y = np.zeros((1000, 4)), np.zeros(1000)
    examples = Examples(x, y, x, y, x[:10], y[:10])
    options = FitOptions(4, 100, 10, True, 0, "auto", 1, 1, False, evaluate_every_steps=every)
    rehearsal = Rehearsal(examples, 10, [MEASURED], [SimpleNamespace(seconds=20.0)], 2.0, 0.5, 3.0, 10**6)
    [phase] = forecast_run(rehearsal, [Phase(epochs=3)], examples, options).phases
    assert phase.validation_seconds == pytest.approx(validations * 0.5)
    searched = forecast_run(rehearsal, [Phase(epochs=3)], examples, options, searches=1)
    assert searched.search_seconds == pytest.approx(phase.seconds + 2.0 + 0.5)  # a last validation, and its compiling
