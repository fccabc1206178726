"""A rehearsal of a run: the same training, on a few rows and for a few epochs, of which nothing remains but figures.

Every phase is trained by the code that trains it in a run, and the model is evaluated, saved and opened again. So what
would break off a run after hours shows in a minute, and `finetune.training.forecast` knows what a step takes.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from finetune.available_memory import peak_memory
from finetune.data.batches import steps_per_epoch
from finetune.data.examples import SPLITS, Examples, Split
from finetune.errors import FinetuneError, TrainingError, reason
from finetune.groups.selectors import LayerGroup
from finetune.machine_failures import raise_machine_failure
from finetune.training.fit import train
from finetune.training.monitor_interval import measured_every
from finetune.training.phases.phase import Phase
from finetune.training.phases.records import PhaseRecord
from finetune.training.reopened import open_again
from finetune.training.run_fit import FitOptions
from finetune.training.saving import save_model
from finetune.training.snapshot import no_trace
from finetune.training.training_clock import PhaseTimes, TrainingClock

SECONDS = 2.0  # that a phase is measured, beyond its first epoch
# Of an epoch of the rehearsal, where the run has as many. Small steps share calls of up to 64, and what the first call
# of an epoch takes longer shows beside a few others only.
FEWEST_STEPS, MOST_STEPS = 4, 512
EVALUATED_ROWS = 32  # in a batch, as `evaluate` takes them by default; their number may change the last bit of a loss


@dataclass(frozen=True)
class Rehearsal:
    """What the rehearsal of a run has shown.

    Attributes:
        examples: The few rows.
        steps: Steps of an epoch in the rehearsal.
        phases: What was measured in each phase.
        records: What training recorded of each phase.
        evaluate_once_seconds: What comes once before the model is evaluated: compiling.
        evaluate_seconds: Evaluating the test rows of the rehearsal.
        save_seconds: Saving the model, opening it again, and what `finish` did.
        peak_bytes: The most memory that this process has had so far.
        problem: Why a run would not get as far as this; empty where it would.
    """

    examples: Examples
    steps: int
    phases: Sequence[PhaseTimes]
    records: Sequence[PhaseRecord]
    evaluate_once_seconds: float
    evaluate_seconds: float
    save_seconds: float
    peak_bytes: int
    problem: str = ""


def rehearse(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    examples: Examples,
    options: FitOptions,
    *,
    finish: Callable[[Path, Sequence[PhaseRecord]], None] = lambda folder, records: None,
) -> Rehearsal:
    """Trains, evaluates and saves a model as a run would, on a few rows; afterwards its weights are what they were.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: The phases of the run.
        examples: The examples of the run.
        options: How the run fits.
        finish: What the run does at its end with its folder, such as drawing plots.

    Raises:
        MachineError: Memory, room on the disk, open files or processes run out.
    """
    steps = min(options.steps_per_epoch, _steps_worth_measuring(model, examples, options.batch_size))
    few = _few_rows(examples, steps * options.batch_size, whole=steps == options.steps_per_epoch)
    steps = steps_per_epoch(len(few.train), options.batch_size)
    clock, records, seconds, problem = TrainingClock(SECONDS), (), [0.0] * 3, ""
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="finetune-") as temporary, no_trace(model):
        folder = Path(temporary) / "run"
        (folder / "checkpoints").mkdir(parents=True)
        try:
            seconds[:2] = _evaluated(model, few)
            few_options = _few_options(model, options, steps)
            records = train(model, groups, phases, few, few_options, folder=folder, console=quiet, clock=clock)
            begun = time.perf_counter()
            save_model(model, folder / "model.keras")
            problem = open_again(folder / "model.keras")()
            finish(folder, records)
            seconds[2] = time.perf_counter() - begun
        except Exception as error:  # training runs code of the user's model, which may raise anything
            raise_machine_failure(error, "Training on a few rows")
            problem = _without_places(error, temporary)
    return Rehearsal(few, steps, clock.phases, records, *seconds, peak_bytes=peak_memory(), problem=problem)


def _steps_worth_measuring(model: Any, examples: Examples, batch_size: int) -> int:
    """Returns how many steps take about as long as a phase is measured, from the time to read a batch and forwards."""
    rows = min(batch_size, len(examples.train))
    model(examples.train.first(rows)[0], training=False)
    begun = time.perf_counter()
    x, _ = examples.train.first(rows)
    read = time.perf_counter()
    model(x, training=False)
    seconds = read - begun + 3 * (time.perf_counter() - read)  # backwards takes twice as long as forwards
    return int(np.clip(np.ceil(SECONDS / seconds), FEWEST_STEPS, MOST_STEPS))


def _few_options(model: Any, options: FitOptions, steps: int) -> FitOptions:
    """Returns how a rehearsal of so many steps an epoch fits.

    Its layer groups are measured as often as those of the run. It does not evaluate within an epoch: how often a run
    does is known, and what it takes is the time of a validation.
    """
    every = measured_every(
        options.log_every_steps, model, batch_size=options.batch_size, steps=options.epochs * options.steps_per_epoch
    )
    return replace(options, steps_per_epoch=steps, evaluate_every_steps=None, log_every_steps=every or "off")


def _few_rows(examples: Examples, rows: int, *, whole: bool) -> Examples:
    """Returns examples with at most so many rows in each split, evenly taken; all training rows where they are few."""
    changed: dict[str, Any] = {}
    for name in SPLITS:
        split: Split | None = getattr(examples, name)
        if split is None or len(split) <= rows or (whole and name == "train"):
            continue
        chosen = split.select(np.linspace(0, len(split) - 1, rows).round().astype(int))
        changed |= {f"x_{name}": chosen.x, f"y_{name}": chosen.y, f"weights_{name}": chosen.weights}
    return replace(examples, **changed)


def _evaluated(model: Any, examples: Examples) -> tuple[float, float]:
    """Returns what evaluating takes once, and what it takes for the rows."""
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        model.evaluate(examples.test.batches(EVALUATED_ROWS), verbose=0)
        seconds.append(time.perf_counter() - begun)
    return max(seconds[0] - seconds[1], 0.0), seconds[1]


def _without_places(error: Exception, folder: str) -> str:
    """Returns what an error says, without the sentences on files that are gone with the rehearsal."""
    cause = error.__cause__
    if isinstance(error, TrainingError) and cause and not isinstance(cause, FinetuneError):
        return f"training breaks off. {type(cause).__name__}: {reason(cause)}"
    if not isinstance(error, FinetuneError):
        return f"training breaks off. {type(error).__name__}: {reason(error)}"
    sentences = str(error).replace(". ", ".\n").splitlines()
    return " ".join(sentence for sentence in sentences if folder not in sentence).rstrip(".")
