"""TensorBoard's files: one for each of training and validation, whatever the number of phases."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import WriteError, printable
from finetune.results.run_lock import check_held
from finetune.training.failed_writes import FailedWrites


class TensorBoardLog(keras.callbacks.Callback):
    """Writes `epoch_<name>` for every epoch, as Keras' TensorBoard does, without slowing the steps down.

    Keras' callback takes most of a millisecond in each step and several at the end of an epoch, and writes the rate of
    every group twice. All phases of a run go into the same files. Where a file cannot be written training goes on, and
    a later epoch begins another file.

    Args:
        folder: Gets the folders `train` and, for metrics that begin with `val_`, `validation`.
        report: Called with a sentence where a file cannot be written.
        rows: Asked for the epochs so far, as `MetricsFile.rows` has them: a run that goes on has the first of them from
            another process, whose files may reach beyond them, so all are written.
        rows_of_steps: Asked for the rows of a `GroupMonitor` from a number on. Each gives `batch_loss` and the values
            of the groups at its step.
    """

    not_resumed = ("_wrote", "_next", "_gap", "_steps_written")

    def __init__(
        self,
        folder: Path,
        report: Callable[[str], None] = lambda sentence: None,
        rows: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        rows_of_steps: Callable[[int], Sequence[Mapping[str, Any]]] = lambda start: (),
    ):
        super().__init__()
        self.folder, self.rows, self.rows_of_steps = folder, rows, rows_of_steps
        self._steps_written = 0
        self.warned = FailedWrites(report)
        self._writers: dict[str, Any] = {}
        self._wrote = False
        self._next, self._gap = 0, 1  # the epoch to write next, and epochs to wait after another failure

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch < self._next:
            return
        with self.warned.of(WriteError, OSError, tf.errors.OpError):
            try:
                check_held(self.folder)
                earlier = [] if self._wrote else [row for row in self.rows() if row["epoch"] <= epoch]
                self._write_rows(earlier)
                self._write(epoch, logs or {})
                self._write_steps()
                for writer in self._writers.values():
                    writer.flush()
                self._wrote = True
            except (OSError, tf.errors.OpError):
                # A record may be written in part, so another file is begun. Each may be empty: soon few are tried.
                self._writers, self._next, self._gap = {}, epoch + self._gap, 2 * self._gap
                raise

    def _write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._write(int(row["epoch"]) - 1, {key: row[key] for key in row if key not in ("epoch", "phase")})

    def _write(self, epoch: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            part = "validation" if key.startswith("val_") else "train"
            self._scalar(part, f"epoch_{key.removeprefix('val_')}", value, epoch)

    def _write_steps(self) -> None:
        for row in self.rows_of_steps(self._steps_written):
            for key, value in row.items():
                if value is not None and key not in ("step", "epoch", "phase"):
                    self._scalar("train", "batch_loss" if key == "loss" else key, value, row["step"])
            self._steps_written += 1

    def _scalar(self, part: str, name: str, value: Any, step: int) -> None:
        if part not in self._writers:
            self._writers[part] = tf.summary.create_file_writer(str(self.folder / part))
        with self._writers[part].as_default():
            tf.summary.scalar(printable(name), float(value), step=step)

    def close(self) -> None:
        """Closes the files; a run that goes on and has no epoch left writes those of the process before."""
        with suppress(OSError, tf.errors.OpError, WriteError):
            if not self._wrote and self._next == 0:
                check_held(self.folder)
                self._write_rows(self.rows())
                self._write_steps()
            for writer in self._writers.values():
                writer.close()
        self._writers = {}
