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

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.results.artifacts import replacing, write_csv

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


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
            logs.update({f"learning_rate/{name}": rate for name, rate in learning_rates(self.model).items()})


def _model(callback: keras.callbacks.Callback) -> Any:
    return callback.model  # Keras says that it may be None; while training runs it is not


def learning_rates(model: Any) -> dict[str, float]:
    """Returns the rate that each layer group of a compiled model uses in the next step."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
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
    """Saves weights and optimizer after every epoch, unless its loss is no finite number.

    The file is whole at all times; Keras' ModelCheckpoint writes over the one that is there.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if math.isfinite(float((logs or {}).get("loss", 0.0))):
            with replacing(self.path) as temporary:
                _model(self).save_weights(temporary)


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Stops at the first loss that is no finite number, without the print of Keras' TerminateOnNaN.

    Attributes:
        stopped_at: Epoch, step of the epoch (both from 1) and loss; `None` while all is well.
    """

    stopped_at: tuple[int, int, float] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.stopped_at = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if self.stopped_at is None and not math.isfinite(loss):
            self.stopped_at = (self._epoch, batch + 1, loss)
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

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._bar.start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if now - self._drawn > 0.1:  # reading the loss waits for the step; ten times a second is enough for eyes
            self._drawn = now
            loss = "" if logs is None or "loss" not in logs else f"loss {float(logs['loss']):.4f}"
            done = self._epoch * self.steps_per_epoch + batch + 1
            self._bar.update(self._task, completed=done, description=f"epoch {self._epoch + 1}/{self.epochs} {loss}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        told = sorted(key for key in logs or {} if not key.startswith("learning_rate/"))
        values = {key: (logs or {})[key] for key in sorted(told, key=lambda key: "loss" not in key)}
        every = learning_rates(self.model)
        told = every if self.trained is None else [name for name in every if name in self.trained]
        rates = "  ".join(f"{name} {every[name]:.2e}" for name in told)
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
