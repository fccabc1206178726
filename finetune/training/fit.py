"""The training of a run: the loop over its phases, what goes on from a checkpoint, and how it ends.

If you are reading, go to `train`; `RunFit` (`run_fit.py`) fits one phase. A run without `phases` in its
recipe is one phase of all groups.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.data.batches import measurement_batches
from finetune.data.examples import Examples
from finetune.distribution.workers import training_together
from finetune.errors import TrainingError, WriteError
from finetune.groups.selectors import LayerGroup
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.data_wait import DataWait
from finetune.training.fast.steps_per_call import calls_restored
from finetune.training.finished_steps import finished_steps_kept
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.auto_rgn import AUTO_RGN_BATCHES
from finetune.training.phases.loop import run_phases
from finetune.training.phases.phase import Phase
from finetune.training.phases.records import PhaseRecord
from finetune.training.run_fit import FitOptions, RunFit
from finetune.training.time_limit import TimeLimit
from finetune.training.trackers import Trackers
from finetune.training.training_clock import TrainingClock


def train(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    examples: Examples,
    options: FitOptions,
    *,
    folder: Path,
    console: Console,
    proof: FrozenRecords | None = None,
    wait: DataWait | None = None,
    weights: LastWeights | None = None,
    checkpoint: Checkpoint | None = None,
    non_finite: NonFiniteGradients | None = None,
    clock: TrainingClock | None = None,
    advice: list[str] | None = None,
    keepers: Sequence[keras.callbacks.Callback] = (),
    time_limit: TimeLimit | None = None,
    trackers: Trackers | None = None,
) -> tuple[PhaseRecord, ...]:
    """Trains a compiled model phase by phase and writes metrics, logs and weights into the run folder.

    Training ends early after a phase in which a loss was not finite or a frozen tensor changed.

    Args:
        model: Compiled with a `GroupedOptimizer`.
        groups: All of its layer groups.
        phases: At least one.
        examples: What it is trained and validated on.
        options: How it is fitted.
        folder: The run folder.
        console: Where to print.
        proof: Takes the checksums of what is frozen, and gets a record of each phase.
        wait: Adds up how long training waits for rows that are made when they are taken.
        weights: Saves the weights, and says afterwards where they are.
        checkpoint: Goes on where its file says, if there is one, and writes the next.
        non_finite: What happens to steps whose gradients are not finite; it counts those that are left out.
        clock: Measures each phase, and may end it early; a run has none.
        advice: Gets sentences on groups that hardly move or move far more than the others.
        keepers: Callbacks that remember weights.
        time_limit: Ends the training after a time.
        trackers: Get the rows of the metrics.

    Returns:
        One record for each phase.

    Raises:
        TrainingError: Training breaks off, or a loss is not a finite number. The weights of the finished steps are
            saved.
        Stopped: A signal asks the process to end. The weights are saved, and `kept` says so.
        WriteError: The metrics cannot be written.
    """
    weights = weights or LastWeights(last_weights(folder))
    fit = RunFit(model, groups, phases, examples, options, folder, console, wait, weights, non_finite, checkpoint)
    fit.clock = clock
    # Behind those that write the metrics, and before the checkpoint, which holds their state.
    fit.observers += [*keepers, *([time_limit] if time_limit else []), *([trackers] if trackers else [])]
    if trackers:
        trackers.rows_of_epochs = lambda: fit.metrics.rows
        trackers.rows_of_steps = fit.monitor.rows_since if fit.monitor else trackers.rows_of_steps
    if time_limit:
        time_limit.report = fit.report
    proof = proof or FrozenRecords()
    records: list[PhaseRecord] = []
    if checkpoint:
        if checkpoint.goes_on:
            records += [PhaseRecord.from_json(record) for record in checkpoint.resumed.document["records"]]
            proof.take(checkpoint.resumed.document["proof"])
            fit.progress.epochs -= sum(record.epochs_left for record in records)
            # Written anew: what the process before has logged may reach beyond its checkpoint.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        of_caller = checkpoint.more
        checkpoint.more = lambda: {
            **of_caller(),
            "records": [record.to_json() for record in records],
            "proof": proof.to_json(),
            "seeds": fit.seeds,
        }
    loop = run_phases(
        model,
        groups,
        phases,
        fit,
        steps_per_epoch=options.steps_per_epoch,
        gradient_batches=lambda: (
            lambda epoch: measurement_batches(
                examples.x_train,
                examples.y_train,
                batch_size=options.batch_size,
                seed=options.seed + epoch,  # a run that goes on measures over the same
                sample_weight=examples.weights_train,
                augmentation=examples.augmentation,
            ).take(AUTO_RGN_BATCHES)
        ),
        proof=proof,
        checkpoint=checkpoint,
        on_phase=fit.announce,
    )
    with (
        training_together(),
        _tidied(model, folder / "features"),
        fit.progress,
        closing(fit.tensorboard),
        finished_steps_kept(fit.weights, checkpoint, non_finite, fit.finite_weights),
        closing(loop),
    ):
        for record in loop:
            if record.keras_loop and record.keras_loop not in [before.keras_loop for before in records]:
                sentence = f"Keras' own loop made the steps, not the fast one: {record.keras_loop}"
                console.print(sentence, highlight=False, markup=False)
            records.append(record)
            fit.progress.epochs -= record.epochs_left
            is_over = time_limit is not None and time_limit.reached
            if record.epochs_left > 0 and not fit.guard.stopped_at and not is_over:
                fit.report(_ended_early(record, phases, options.announce_phases))
            if fit.guard.stopped_at or is_over or not record.frozen_unchanged:
                break
    if fit.guard.stopped_at:
        epoch, step, loss = fit.guard.stopped_at
        check_finite(loss, f"in epoch {epoch}, step {step}", folder)
    if fit.weights.unsaved:
        fit.report(f"warning: {fit.weights.keep()}")
    try:
        fit.metrics.write()
        if fit.monitor:
            fit.monitor.write()
            (advice if advice is not None else []).extend(fit.monitor.advice.values())
    except WriteError as error:
        raise WriteError(f"{error} {fit.weights.keep()}") from error
    return tuple(records)


def _ended_early(record: PhaseRecord, phases: Sequence[Phase], announced: bool) -> str:
    """Returns a sentence about a phase that `until` has ended."""
    what = f"phase {record.number}" if announced else "training"
    until = phases[record.number - 1].until
    why = f": `{until.monitor}` no longer got better" if until else ""
    best = ", and the weights of its best epoch are back" if until and until.restore_best else ""
    plural = "" if record.epochs_left == 1 else "s"
    return f"{what} ended {record.epochs_left} epoch{plural} early{why}{best}"


@contextmanager
def _tidied(model: Any, features: Path) -> Iterator[None]:
    """Gives the model Keras' own train function back afterwards, and removes the features on disk."""
    try:
        with calls_restored(model):
            yield
    finally:
        model.train_function = None
        shutil.rmtree(features, ignore_errors=True)


def last_weights(folder: Path) -> Path:
    """Returns the file of the latest weights in a run folder."""
    return folder / "checkpoints" / "last.weights.h5"


def check_finite(loss: float, where: str, folder: Path) -> None:
    """Checks a loss.

    Args:
        loss: The loss.
        where: Where it was measured, for the message, such as `in epoch 2, step 7`.
        folder: The run folder.

    Raises:
        TrainingError: It is not a finite number.
    """
    if not isfinite(loss):
        raise TrainingError(
            f"A loss must be a finite number. It became `{loss}` {where}. Lower the learning rates, or set "
            f"`train.global_clipnorm: 1.0`. The metrics so far are in `{folder / 'metrics.csv'}`."
        )
