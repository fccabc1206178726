"""Evaluates the validation rows within an epoch, every so many steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from finetune.errors import WriteError
from finetune.results.run_folder import write_csv
from finetune.training.checkpoints.model_state import metrics_state, restore_metrics
from finetune.training.fast.steps_per_call import steps_done
from finetune.training.snapshot import unchanged_random_state


class EvaluateBySteps(keras.callbacks.Callback):
    """Evaluates the model in the middle of an epoch, and leaves no trace in the training.

    The metrics go to a file, and to every callback that has `on_evaluation(epoch, step, logs)`. At the end of an epoch
    Keras validates itself.

    Args:
        validation: The batches.
        every: Steps between two evaluations, counted in each epoch, >= 1. An evaluation is at the end of the call that
            makes the step, where several steps share one: Keras plans the calls of an epoch when it begins.
        path: The CSV file.
        report: Called with a line for each evaluation.

    Attributes:
        rows: What the file holds.
        watchers: The callbacks that are told.
        place: The epoch and the step up to which the training was evaluated by a process before, both from 0.
    """

    not_resumed = ("watchers", "place")

    def __init__(self, validation: Any, every: int, path: Path, report: Callable[[str], None]):
        super().__init__()
        self.validation, self.every, self.path, self.report = validation, every, path, report
        self.rows: list[dict[str, Any]] = []
        self.watchers: Sequence[Any] = ()
        self.place: tuple[int, int] = (0, 0)
        self._epoch = self._first = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        steps = (self.params or {}).get("steps")
        done = min(steps_done(model, first=self._first, last=batch), steps or batch + 1)
        # Steps that a process before has made are passed over; the end of the epoch is validated by Keras.
        is_due = done // self.every > self._first // self.every and (self._epoch, done) > self.place and done != steps
        if not is_due or model.stop_training:
            return
        before = metrics_state(model)
        with unchanged_random_state():
            values = model.evaluate(self.validation, verbose=0, return_dict=True)
        restore_metrics(model, before)
        measured = {f"val_{name}": float(value) for name, value in values.items()}
        self.rows.append({"epoch": self._epoch + 1, "step": done, **measured})
        self._write()
        line = "  ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self.report(f"epoch {self._epoch + 1}, step {done}: {line}")
        for watcher in self.watchers:
            watcher.on_evaluation(self._epoch, done, measured)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._write()

    def _write(self) -> None:
        try:
            write_csv(self.path, self.rows, durable=False)
        except WriteError as error:
            self.report(f"warning: {error}")
