"""What is told and kept while training runs: rates, progress, metrics, weights; and what stops it."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.summary import Writer

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap import unwrap
from finetune.results.run_folder import replacing, write_csv
from finetune.training.fast.calls import steps_done

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_RATE = "learning_rate/"


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar on a terminal; yields what to tell the steps done and the steps in all."""
    with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class LearningRateLogger(keras.callbacks.Callback):
    """Adds `learning_rate/<group>` to the logs of every epoch.

    Put it first in the list of callbacks: History, CSVLogger and TensorBoard then record the rates as well.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update({f"{_RATE}{name}": rate for name, rate in learning_rates(self.model).items()})


def _rates(model: Any, logs: dict[str, Any]) -> dict[str, float]:
    """Takes the rates from the logs, where the logger has put them: reading those of many groups takes milliseconds."""
    logged = {key.removeprefix(_RATE): rate for key, rate in logs.items() if key.startswith(_RATE)}
    return logged or learning_rates(model)


def _model(callback: keras.callbacks.Callback) -> Any:
    return callback.model  # Keras says that it may be None; while training runs it is not


def learning_rates(model: Any) -> dict[str, float]:
    """Returns the rate that each layer group of a compiled model uses in the next step."""
    optimizer = unwrap(model.optimizer)
    if isinstance(optimizer, GroupedOptimizer):
        return optimizer.learning_rates
    return {optimizer.name: float(optimizer.learning_rate)}


class MetricsFile(keras.callbacks.Callback):
    """Writes one CSV row for every epoch. The file is whole after each of them; Keras' CSVLogger adds empty columns.

    Attributes:
        phase: Number of the phase, which then has a column; `None` where there are none.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.phase: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.phase in (None, 1):  # the rows of all phases stay
            self._rows: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        phase = {} if self.phase is None else {"phase": self.phase}
        self._rows.append({"epoch": epoch + 1, **phase, **{key: float(value) for key, value in (logs or {}).items()}})
        write_csv(self.path, self._rows)


class LastWeights(keras.callbacks.Callback):
    """Saves weights and optimizer after an epoch, unless its loss is no finite number.

    The file is whole at all times; Keras' ModelCheckpoint writes over the one that is there. Saving takes a hundredth
    of the time at most: where epochs are so short that it would take more, some are left out, but neither the first
    nor the last.
    """

    _SHARE = 0.01
    _FIRST_SECONDS = 0.0  # before anything is saved

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._next = time.monotonic() + self._FIRST_SECONDS  # when it is time to save
        self._left_out = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._left_out = math.isfinite(float((logs or {}).get("loss", 0.0)))
        if time.monotonic() >= self._next:
            self._save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._save()

    def _save(self) -> None:
        if self._left_out:
            begun = time.monotonic()
            with replacing(self.path) as temporary:
                _model(self).save_weights(temporary)
            now = time.monotonic()
            self._next, self._left_out = now + (now - begun) / self._SHARE, False


class TensorBoardLog(keras.callbacks.Callback):
    """Writes `epoch_<name>` for every epoch as Keras' TensorBoard does, from a thread, at no cost to the steps.

    Keras' own takes most of a millisecond a step and several an epoch, and writes every group's rate twice.

    Args:
        folder: Where the folders `train` and, for what begins with `val_`, `validation` go.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._writers: dict[str, Writer] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for key, value in (logs or {}).items():
            part = "validation" if key.startswith("val_") else "train"
            if part not in self._writers:
                self._writers[part] = Writer(str(self.folder / part))
            self._writers[part].add_scalar(f"epoch_{key.removeprefix('val_')}", float(value), epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for writer in self._writers.values():
            writer.close()


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Stops at the first loss that is no finite number, without the print of Keras' TerminateOnNaN.

    The loss of a step is read when the next step, or the epoch, is done, so that no step waits for it.

    Attributes:
        stopped_at: Epoch, step of the epoch (both from 1) and loss; `None` while all is well.
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
        """Looks at the loss of the step before."""
        before, self._before = self._before, latest
        if self.stopped_at is None and before and not math.isfinite(loss := float(before[2])):
            self.stopped_at = (*before[:2], loss)
            _model(self).stop_training = True


class ProgressLine(keras.callbacks.Callback):
    """A bar that moves on a terminal, and one line for every epoch with loss, metrics and rate everywhere.

    Attributes:
        trained: Groups whose rates are told; `None` for all.
    """

    def __init__(self, console: Console, *, epochs: int, steps_per_epoch: int):
        super().__init__()
        self.trained: Collection[str] | None = None
        self.console, self.epochs, self.steps_per_epoch = console, epochs, steps_per_epoch
        self._bar = Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=epochs * steps_per_epoch)
        self._drawn = 0.0
        self._loss: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
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
            loss = (
                "" if before is None else f"loss {float(before):.4f}"
            )  # that of this step would have to be waited for
            done = self._epoch * self.steps_per_epoch + batch + 1
            self._bar.update(self._task, completed=done, description=f"epoch {self._epoch + 1}/{self.epochs} {loss}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        told = sorted(key for key in logs or {} if not key.startswith(_RATE))
        values = {key: (logs or {})[key] for key in sorted(told, key=lambda key: "loss" not in key)}
        every = _rates(self.model, logs or {})
        trained = every if self.trained is None else [name for name in every if name in self.trained]
        rates = "  ".join(f"{name} {every[name]:.2e}" for name in trained)
        line = "  ".join(f"{key} {float(value):.4f}" for key, value in values.items())
        width = len(str(self.epochs))
        self.console.print(
            f"epoch {epoch + 1:{width}}/{self.epochs}  {line}  rate: {rates}", highlight=False, markup=False
        )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self._bar.stop()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # after an error Keras does not call `on_train_end`
