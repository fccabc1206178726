"""The observers of a run: they print progress, write metrics, logs and weights, and stop at a loss that is not finite.

`RunFit` in `finetune.training.run_fit` puts them together. `LearningRateLogger` comes first, since the others read the
rates from the logs.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.errors import WriteError, reason
from finetune.interruption import stopped
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.results.run_folder import write_csv
from finetune.training.failed_writes import FailedWrites
from finetune.training.fast.steps_per_call import steps_done
from finetune.training.saving import save_elsewhere, save_weights

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_RATE = "learning_rate/"
_SHOWN_GROUPS = 4  # in a line


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar on a terminal; yields a function to call with the steps done and the steps in all, if known."""
    with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class LearningRateLogger(keras.callbacks.Callback):
    """Adds `learning_rate/<group>` to the logs of every epoch.

    Put it first in the list of callbacks: History, CSVLogger and TensorBoard then record the rates, too.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update({f"{_RATE}{name}": rate for name, rate in learning_rates(self.model).items()})


def _rates(model: Any, logs: dict[str, Any]) -> dict[str, float]:
    """Returns the rates from the logs of an epoch; without `LearningRateLogger` from the optimizer.

    Reading the rates of many groups takes milliseconds, so it is done once an epoch.
    """
    logged = {key.removeprefix(_RATE): rate for key, rate in logs.items() if key.startswith(_RATE)}
    return logged or learning_rates(model)


def _model(callback: keras.callbacks.Callback) -> Any:
    return callback.model  # annotated as optional by Keras; while training runs it is there


def learning_rates(model: Any) -> dict[str, float]:
    """Returns the rate that each layer group of a compiled model uses in the next step, by name."""
    optimizer = unwrap(model.optimizer)
    if isinstance(optimizer, GroupedOptimizer):
        return optimizer.learning_rates
    return {optimizer.name: as_float(optimizer.learning_rate)}


class MetricsFile(keras.callbacks.Callback):
    """Writes a CSV row for every epoch. The file is complete after each of them.

    Keras' CSVLogger fixes its columns in the first epoch and appends to a file that an interruption leaves incomplete.
    Where the file cannot be written training goes on, and the next epoch writes all rows.

    Args:
        path: The file.
        report: Called with a sentence where the file cannot be written.

    Attributes:
        phase: Number of the phase, which gets a column; `None` for a run that shows no phases.
        rows: The rows so far. `fit` is called once a phase, and those of all phases belong in the file.
    """

    not_resumed = ("phase",)

    def __init__(self, path: Path, report: Callable[[str], None] = lambda sentence: None):
        super().__init__()
        self.path = path
        self.phase: int | None = None
        self.rows: list[dict[str, Any]] = []
        self.warned = FailedWrites(report)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.phase in (None, 1):
            self.rows = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        phase = {} if self.phase is None else {"phase": self.phase}
        self.rows.append({"epoch": epoch + 1, **phase, **{key: float(value) for key, value in (logs or {}).items()}})
        with self.warned.of(WriteError):
            # An epoch may take less than a millisecond, and bringing a file to the disk takes several.
            write_csv(self.path, self.rows, durable=False)

    def write(self) -> None:
        """Writes the rows of all epochs once more.

        Raises:
            WriteError: The file cannot be written.
        """
        write_csv(self.path, self.rows)


class LastWeights(keras.callbacks.Callback):
    """Saves weights and optimizer after an epoch, unless its loss is not finite.

    The file is complete at all times: a new one is written beside it and then takes its place, where Keras'
    ModelCheckpoint overwrites it. Saving takes at most a hundredth of the training time. Where epochs are so short that
    it would take more, some epochs are skipped, but neither the first nor the last. Where it fails training goes on,
    and the former file stays.

    Args:
        path: The file.
        report: Called with a sentence where the file cannot be written.

    Attributes:
        writes: Whether the file is written; of several workers, one does.
        saved: What the file holds, such as `epoch 3`; empty before it is written.
        saved_to: Where that is: `path`, or a file in another folder.
        unsaved: Whether the weights are finite and newer than the file.
    """

    not_resumed = ("_next",)
    _SHARE = 0.01  # of the time, for saving
    _FIRST_SECONDS = 0.0  # before the first file; a test sets it higher

    def __init__(self, path: Path, report: Callable[[str], None] = lambda sentence: None):
        super().__init__()
        self.path = self.saved_to = path
        self.saved = ""
        self.optimizer = True  # whether the file also holds its state
        self.writes = True
        self.warned = FailedWrites(report)
        self.unsaved = False
        self._moment, self._steps, self._first = "", 0, 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._next = time.monotonic() + self._FIRST_SECONDS  # earliest time of the next file
        self.unsaved = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._steps, self._loss = epoch, 0, None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps, self._loss = steps_done(self.model, first=self._first, last=batch), (logs or {}).get("loss")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.unsaved = self.writes and math.isfinite(float((logs or {}).get("loss", 0.0)))
        self._moment, self._steps = f"epoch {epoch + 1}", 0
        if time.monotonic() >= self._next:
            self._save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._save()

    def count(self, steps: int) -> None:
        """Says how many steps of the epoch in which training breaks off were made: fewer or more than it has seen."""
        self._steps = steps

    def drop_optimizer(self, model: keras.Model) -> None:
        """Writes the file anew without the state of the optimizer, where the file holds the newest weights."""
        if self.saved_to == self.path and self.path.is_file():
            with self.warned.of(WriteError):
                save_weights(model, self.path, optimizer=False)

    def keep(self, *, newest: bool = True) -> str:
        """Saves what is not saved yet, if need be in another folder, and says in a sentence what is saved and where.

        It is called where training breaks off, and where the file could not be written at its end.

        Args:
            newest: Whether the weights of the model are worth saving; otherwise the file stays as it is.
        """
        if not self.writes:
            return "The chief saves the weights."
        self.unsaved &= newest
        if newest and self._steps and math.isfinite(float(1.0 if self._loss is None else self._loss)):
            of_all = f" of {steps}" if (steps := (self.params or {}).get("steps")) else ""
            before = f"epoch {self._epoch} and " if self._epoch else ""
            self._moment, self.unsaved = f"{before}{self._steps}{of_all} steps of epoch {self._epoch + 1}", True
        try:
            self._save()
            if self.unsaved and (elsewhere := save_elsewhere(_model(self), self.path.absolute().parents[1].name)):
                self.saved, self.saved_to, self.unsaved = self._moment, elsewhere, False
        except Exception as error:  # training broke off in a way that does not even let the weights be read
            return f"The weights could not be saved: {reason(error)}."
        lost = f" Those after {self._moment} could not be saved anywhere." if self.unsaved else ""
        if not self.saved:
            return f"No weights are saved.{lost}"
        return f"The weights after {self.saved} are in `{self.saved_to}`.{lost}"

    def _save(self) -> None:
        if self.unsaved:
            begun = time.monotonic()
            with self.warned.of(WriteError):
                save_weights(_model(self), self.path, optimizer=self.optimizer)
                self.saved, self.saved_to, self.unsaved = self._moment, self.path, False
            now = time.monotonic()
            self._next = now + (now - begun) / self._SHARE


class StopAtSignal(keras.callbacks.Callback):
    """Raises `Stopped` at the end of a step, or of a step of the validation, where a signal asks the process to end.

    Put it last in the list of callbacks, so that an epoch which is over is in the files of the others.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # The last step of an epoch lets the epoch end.
        if stopped() and batch + 1 != (self.params or {}).get("steps"):
            self._stop()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._stop()

    def _stop(self) -> None:
        if stop := stopped():
            raise stop


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Stops at the first loss that is not a finite number; unlike Keras' TerminateOnNaN it knows the step afterwards.

    A loss is a tensor that may still be computed. So it is read when the next call, or the epoch, is over, and no step
    waits for it.

    Attributes:
        stopped_at: Epoch, step of the epoch (both from 1) and loss; `None` while all losses are finite.
    """

    stopped_at: tuple[int, int, float] | None = None
    _before: tuple[int, int, Any] | None = None
    _first = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.stopped_at, self._before = None, None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch + 1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Several steps may share a call, which ends at the step whose loss is not a finite number.
        step = steps_done(_model(self), first=self._first, last=batch)
        self._read((self._epoch, step, (logs or {}).get("loss", 0.0)))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._read(None)

    def _read(self, latest: tuple[int, int, Any] | None) -> None:
        """Checks the loss of the call before, and keeps the latest for the next time."""
        before, self._before = self._before, latest
        if self.stopped_at is None and before and not math.isfinite(loss := float(before[2])):
            self.stopped_at = (*before[:2], loss)
            _model(self).stop_training = True


def values_of_groups(values: Mapping[str, float], peaks: Mapping[str, float] | None = None) -> str:
    """Writes a value of each group, with its peak where that was higher; of many groups the least and the highest.

    Args:
        values: The values by the name of the group.
        peaks: The highest value that each has had; `None` for the values themselves.
    """
    highest = {name: (peaks or values)[name] for name in values}
    if len(values) > _SHOWN_GROUPS:
        low, high = min(values, key=values.__getitem__), max(highest, key=highest.__getitem__)
        return f"{len(values)} groups {values[low]:.2e} ({low}) to {highest[high]:.2e} ({high})"
    risen = {name: f" (was {peak:.2e})" for name, peak in highest.items() if peak > 1.01 * values[name]}
    return "  ".join(f"{name} {value:.2e}{risen.get(name, '')}" for name, value in values.items())


class ProgressLine(keras.callbacks.Callback):
    """Prints a line for every epoch, with loss, metrics and rates, and on a terminal shows a bar within the epoch.

    Args:
        console: Where to print.
        epochs: Epochs of the whole run.
        steps_per_epoch: Steps of an epoch.

    Attributes:
        trained: Names of the groups whose rates are printed; `None` for all.
        rows: Asked for what a `GroupMonitor` has measured in an epoch, counted from 0.
    """

    not_resumed = ("trained", "_drawn", "_rates_before")

    def __init__(self, console: Console, *, epochs: int, steps_per_epoch: int):
        super().__init__()
        self.trained: Collection[str] | None = None
        self.rows: Callable[[int], Sequence[Mapping[str, Any]]] = lambda epoch: ()
        self._rates_before: dict[str, float] = {}  # of the first step of the epoch
        self.console, self.epochs, self.steps_per_epoch = console, epochs, steps_per_epoch
        self._bar = Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=epochs * steps_per_epoch)
        self._drawn = 0.0
        self._loss: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._rates_before = {}
        self._bar.start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._bar.disable:
            return
        before, self._loss = self._loss, (logs or {}).get("loss")
        now = time.monotonic()
        if now - self._drawn > 0.1:  # ten times a second is enough for eyes
            self._drawn = now
            # The loss of the call before: this call's may still be computed, and reading it would wait for that.
            loss = "" if before is None else f"loss {float(before):.4f}"
            done = self._epoch * self.steps_per_epoch + batch + 1
            self._bar.update(self._task, completed=done, description=f"epoch {self._epoch + 1}/{self.epochs} {loss}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        names = sorted(key for key in logs or {} if not key.startswith(_RATE))
        values = {key: (logs or {})[key] for key in sorted(names, key=lambda key: "loss" not in key)}  # losses first
        all_rates = _rates(self.model, logs or {})
        trained = all_rates if self.trained is None else [name for name in all_rates if name in self.trained]
        rows = self.rows(epoch)
        rates = values_of_groups({name: all_rates[name] for name in trained}, self._peaks(rows, all_rates))
        self._rates_before = all_rates
        latest = {name: rows[-1].get(f"update_ratio/{name}") for name in trained} if rows else {}
        updates = values_of_groups({name: value for name, value in latest.items() if value is not None})
        line = "  ".join(f"{key} {float(value):.4f}" for key, value in values.items())
        width = len(str(self.epochs))
        self.console.print(
            f"epoch {epoch + 1:{width}}/{self.epochs}  {line}  rate: {rates}"
            + (f"  update: {updates}" if updates else ""),
            highlight=False,
            markup=False,
        )

    def _peaks(self, rows: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> dict[str, float]:
        """Returns the highest rate of each group in the epoch, as far as known: it may have risen and fallen."""
        seen = {name: [rate, self._rates_before.get(name, rate)] for name, rate in rates.items()}
        return {name: max(*known, *(row.get(f"{_RATE}{name}") or 0.0 for row in rows)) for name, known in seen.items()}

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar from the terminal."""
        self._bar.stop()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # after an error Keras does not call `on_train_end`
