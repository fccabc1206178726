"""From a rehearsal on a few rows to a forecast of the run: seconds of an epoch and of the run, and peak memory.

What was measured grows with what it depends on: steps with the steps of an epoch, validation and features with their
rows, features in memory with their bytes. What does not depend on rows, such as compiling, stays as it was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import numpy as np

from finetune.data.examples import SPLITS, Examples, leaves
from finetune.training.phases.phase import Phase
from finetune.training.rehearsal import Rehearsal
from finetune.training.run_fit import FitOptions
from finetune.training.training_clock import PhaseTimes


@dataclass(frozen=True)
class Share:
    """How many there are in the run of what the rehearsal had a few of.

    Attributes:
        rehearsed: How many the rehearsal had.
        all: How many the run has.
    """

    rehearsed: int
    all: int

    @property
    def factor(self) -> float:
        """By what the seconds, or bytes, of the rehearsal are multiplied; 0 where there are none."""
        return self.all / self.rehearsed if self.rehearsed else 0.0


@dataclass(frozen=True)
class PhaseForecast:
    """What a phase of the run will take.

    Attributes:
        epoch_seconds: An epoch after the first.
        least_seconds: An epoch of steps as fast as the fastest quarter of those that were measured.
        most_seconds: An epoch of steps as slow as the slowest quarter.
        validation_seconds: How much of an epoch is validation, at its end and within it.
        once_seconds: What comes once in the phase, and in its first epoch: compiling, features, the proof.
        epochs: How many epochs it has; the last of a phase in steps may be a part of one.
        features_bytes: Size of the cached features that are kept in memory.
    """

    epoch_seconds: float
    least_seconds: float
    most_seconds: float
    validation_seconds: float
    once_seconds: float
    epochs: float
    features_bytes: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole phase."""
        return self.once_seconds + self.epochs * self.epoch_seconds


def forecast_phase(
    times: PhaseTimes,
    *,
    seconds: float,
    epochs: float,
    steps: Share,
    rows: Share,
    validation: Share,
    validations: int = 1,
    decoding_seconds: float = 0.0,
) -> PhaseForecast:
    """Forecasts a phase.

    Args:
        times: What was measured in it. With a single epoch, that stands for all.
        seconds: Wall time of the whole phase in the rehearsal.
        epochs: Epochs of the phase in the run, > 0.
        steps: Steps of an epoch.
        rows: Training rows.
        validation: Validation rows.
        validations: How often an epoch validates, at its end and within it, >= 1.
        decoding_seconds: What the first epoch takes longer since it decodes rows that later ones only read.
    """
    later = times.epochs[1:] or times.epochs
    of_steps = median(each.steps - each.begin for each in later)
    of_rest = median(each.rest + each.begin for each in later)
    validated = median(each.validation for each in later)
    of_each = median(
        (each.validation - each.validation_begin) * validation.factor + each.validation_begin for each in later
    )
    of_validation = validations * of_each if validation.all else 0.0
    usual = of_steps + validated + of_rest
    made, batch = times.features, times.features.batch_seconds if times.features else 0.0
    more_batches = made.passes * (steps.all - steps.rehearsed) if made else 0
    once = max(seconds - len(times.epochs) * usual, 0.0) + batch * more_batches
    epoch = of_steps * steps.factor + of_validation + of_rest
    slower, faster = _spread(times.step_seconds)
    return PhaseForecast(
        epoch_seconds=epoch,
        least_seconds=epoch - of_steps * steps.factor * faster,
        most_seconds=epoch + of_steps * steps.factor * slower,
        validation_seconds=of_validation,
        once_seconds=once + decoding_seconds,
        epochs=epochs,
        features_bytes=made.nbytes * rows.factor if made and made.place == "memory" else 0.0,
    )


@dataclass(frozen=True)
class RunForecast:
    """What a run will take.

    Attributes:
        phases: Each phase.
        seconds: The whole run, from the command to its end, without an LR range test.
        memory_bytes: The most memory of the process.
        search_seconds: How much of that is the search of the rates.
    """

    phases: tuple[PhaseForecast, ...]
    seconds: float
    memory_bytes: float
    search_seconds: float = 0.0


def forecast_run(
    rehearsal: Rehearsal,
    phases: Sequence[Phase],
    examples: Examples,
    options: FitOptions,
    *,
    other_seconds: float = 0.0,
    row_seconds: float = 0.0,
    searches: int = 0,
) -> RunForecast:
    """Forecasts a run.

    Args:
        rehearsal: What its rehearsal has shown, without a problem.
        phases: The phases of the run.
        examples: The examples of the run.
        options: How the run fits.
        other_seconds: What the run does before it evaluates the model for the first time.
        row_seconds: How long it takes to read and decode a row, where rows are kept once they are decoded.
        searches: How many trainings at other rates come before that of the run.
    """
    few, steps = rehearsal.examples, Share(rehearsal.steps, options.steps_per_epoch)
    rows = Share(len(few.train), len(examples.train))
    validation = Share(len(few.validation or ()), len(examples.validation or ()))
    kept = examples.source.get("keep") or {}
    # Within an epoch at every multiple of `every` but its end, which is validated anyway.
    every = options.evaluate_every_steps
    validations = -(-options.steps_per_epoch // every) if every else 1
    forecasts = []
    for number, (phase, times, record) in enumerate(zip(phases, rehearsal.phases, rehearsal.records, strict=True)):
        first_decodes = bool(kept) and number == 0
        forecast = forecast_phase(
            times,
            seconds=record.seconds,
            epochs=phase.epochs or (phase.steps or 0) / options.steps_per_epoch,
            steps=steps,
            rows=rows,
            validation=validation,
            validations=validations,
            decoding_seconds=row_seconds * (rows.all - rows.rehearsed) if first_decodes else 0.0,
        )
        forecasts.append(forecast)
    tests = Share(len(few.test), len(examples.test))
    seconds = other_seconds + rehearsal.evaluate_once_seconds + 2 * rehearsal.evaluate_seconds * tests.factor
    training = sum(forecast.seconds for forecast in forecasts)
    decoding = row_seconds * (rows.all - rows.rehearsed) if kept else 0.0  # in the first training alone
    # Each has a compiled evaluation of its own, and ends with an evaluation of the validation rows.
    evaluated = rehearsal.evaluate_once_seconds + median(each.validation_seconds for each in forecasts) / validations
    searched = searches * (training - decoding + evaluated)
    seconds += searched + training + rehearsal.save_seconds
    features = [each.features_bytes * (1 - 1 / rows.factor) for each in forecasts]
    memory = rehearsal.peak_bytes + max(features) + _bytes_to_come(examples, rows) + _bytes_of_files(examples)
    return RunForecast(tuple(forecasts), seconds, memory, searched)


def _bytes_to_come(examples: Examples, rows: Share) -> float:
    """Returns the bytes of decoded rows that are kept in memory, without those that the rehearsal has decoded."""
    kept = examples.source.get("keep") or {}
    return kept["bytes"] * (1 - 1 / rows.factor) if kept.get("place") == "memory" else 0.0


def _bytes_of_files(examples: Examples) -> int:
    """Returns the bytes of arrays in files, whose pages count as memory once they are read."""
    arrays = [leaf for name in SPLITS for _, leaf in leaves("", getattr(examples, f"x_{name}"))]
    return sum(array.nbytes for array in arrays if isinstance(array, np.memmap))


def _spread(step_seconds: Sequence[float]) -> tuple[float, float]:
    """Returns by what share the slowest and the fastest quarter of the steps differ from the median."""
    if len(step_seconds) < 2:
        return 0.0, 0.0
    low, middle, high = quantiles(step_seconds, n=4, method="inclusive")
    return (high - middle) / middle, (middle - low) / middle


def duration_text(seconds: float) -> str:
    """Writes a duration in two units at most.

    >>> [duration_text(seconds) for seconds in (0.0312, 4.26, 75, 3725, 200_000)]
    ['0.031 s', '4.3 s', '1 min 15 s', '1 h 2 min', '55 h 33 min']
    """
    if seconds < 59.95:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
