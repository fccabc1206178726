"""`Checkpoint`: a training that is killed goes on where it was, with the bits of one that was not."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.batches import training_batches
from finetune.distribution.strategy import scope_of
from finetune.errors import TrainingError
from finetune.keras_private import set_initial_epoch
from finetune.kernels.native_kernels import kernels_of
from finetune.optimizers.group_rates import as_float
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.sequences import one_or_more
from finetune.training.checkpoints.callback_state import callback_states, restore_callbacks
from finetune.training.checkpoints.carried_state import CarriedPart, carry_over
from finetune.training.checkpoints.changed_document import begin_patience_anew, forget_best, undo_time_limit
from finetune.training.checkpoints.checkpoint_file import (
    BEFORE_COOLDOWN,
    Saved,
    checkpoint_files,
    copy_checkpoint,
    prune,
    read_checkpoint,
    read_newest,
    steps_of,
)
from finetune.training.checkpoints.checkpoint_writer import CheckpointWriter
from finetune.training.checkpoints.class_columns import ClassChange
from finetune.training.checkpoints.model_state import metrics_state, model_state, restore_model
from finetune.training.checkpoints.slot_names import read_slot_table
from finetune.training.fast.steps_per_call import check_calls, skip_steps, steps_done

_SHARE = 0.01  # of the training time that writing takes at most, if no interval is given


@dataclass(frozen=True)
class Position:
    """Where in a training a checkpoint was written.

    Attributes:
        epoch: The epoch to go on with, from 0.
        step: Steps of this epoch that are made.
        ended: Whether the `fit` that wrote it was over; in a training with phases, that of the phase.
        stopped: Whether a callback had ended that `fit`.
    """

    epoch: int = 0
    step: int = 0
    ended: bool = False
    stopped: bool = False


class Checkpoint(keras.callbacks.Callback):
    """Writes all that a training depends on while it goes on, and lets the next process go on from there.

    The process may be killed at any moment, also in the middle of an epoch or of a file. Start the same program again:
    the weights, slots, rates, metrics and logs at the end are those of a training that was never interrupted, bit for
    bit (on the CPU, where TensorFlow's kernels are deterministic). Keras' `BackupAndRestore` begins the epoch again.
    Files of more than 32 MB are copied in memory and written while training goes on.

    Exact are also rates and their clocks, warm-ups, accumulated gradients, averages of the weights, the loss scale and
    the random state; a file that is damaged is passed over in favour of the one before. Each holds weights and slots:
    with Adam, three times the size of the weights.

    Put it last in the list of callbacks, of `fit` or of `train_phases`. Data that are read in order, such as a
    `tf.data.Dataset`, are read again up to the place in the epoch. Their order must not depend on what the process did
    before: pass `batches` of this object for data in memory, whose order is a function of the seed and the epoch, and
    which begin at the place at once.

    Args:
        folder: Where the files go. Each training needs a folder of its own.
        every_seconds: Write at least so often, in seconds. More often where that takes at most a hundredth of the time.
        every_steps: Write after so many steps, or at the end of the call of several steps, and at no other time within
            an epoch.
        keep: How many of the newest files stay, >= 1.
        callbacks: Those whose state goes along, such as an `EarlyStopping`: Keras does not tell a callback of the
            others. In `train_phases`, all do by themselves.

    Attributes:
        position: Where the training goes on.
        path: The newest file that is whole; `None` where there is none.
        damaged: Newer files, which are not, with what is wrong with each.

    Raises:
        TrainingError: In `fit`: the file is of another model, optimizer or groups; or Keras' own loop makes calls of
            several steps that do not end where an epoch ends.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> def train(epochs):
        ...     keras.utils.set_random_seed(0)
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     model.compile("adam", "mse")
        ...     checkpoint = Checkpoint(folder)
        ...     x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
        ...     batches = checkpoint.batches(x, y, batch_size=2, seed=7)
        ...     options = {"steps_per_epoch": 4, "epochs": epochs, "shuffle": False, "verbose": 0}
        ...     model.fit(batches, callbacks=[checkpoint], **options)
        ...     return checkpoint.position.epoch, len(model.history.epoch)
        >>> folder = tempfile.mkdtemp()
        >>> train(epochs=2)  # 2 epochs, from the beginning
        (0, 2)
        >>> train(epochs=3)  # one more
        (2, 3)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_seconds: float = 300.0,
        every_steps: int | None = None,
        keep: int = 2,
        callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    ):
        super().__init__()
        if not every_seconds > 0 or (every_steps is not None and every_steps < 1) or keep < 1:
            raise TrainingError(
                "Checkpoints are written every so many seconds, > 0, or steps, >= 1, and at least 1 is kept. Received "
                f"`every_seconds={every_seconds}`, `every_steps={every_steps}`, `keep={keep}`."
            )
        self.folder, self.every_seconds, self.every_steps = Path(folder), every_seconds, every_steps
        self._writer = CheckpointWriter(self.folder, keep)
        self.callbacks: list[keras.callbacks.Callback] = list(one_or_more(callbacks))
        # Further plain data that a file holds, for a training that has more than a model.
        self.more: Callable[[], Mapping[str, Any]] = dict
        self.report: Callable[[str], None] = lambda sentence: None
        self.carried: list[CarriedPart] | None = None  # what was carried, in a training that goes on changed
        self.slots = True  # whether files hold those of a `GroupedOptimizer`
        self.writes = True  # of several workers, one does
        self._changed = False
        self._classes: Sequence[ClassChange] = ()
        self.in_phases = False  # whether somebody else calls `restore` before each `fit`
        self._seeks = False
        self.path, self._saved, self.damaged = read_newest(self.folder)
        self.position = Position(**self._saved.document["position"]) if self._saved else Position()
        self._pending = self._saved is not None
        self._now = self.position
        self._metrics_before_test: dict[str, np.ndarray] | None = None
        self._failing = False
        # The step from which rates fall: the last file before it is kept beside the others.
        self.cooldown_at: int | None = None
        self._steps_before_epoch, self._longest_call = 0, 1
        self._kernels = "exact"
        self._next_time, self._next_step, self._copied = 0.0, 0, 0.0
        self._loss: Any = None
        self._sets_epoch = False
        self._ended_epoch: tuple[int, dict[str, Any]] | None = None  # which Keras' `History` does not have yet

    # -- What a training asks it ----------------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether the training goes on from a file, and has not reached the place yet."""
        return self._pending

    @property
    def document(self) -> Mapping[str, Any]:
        """The further data of the file that the training goes on with; empty where there is none, and on from there."""
        return self._saved.document["more"] if self._saved else {}

    @property
    def holds_slots(self) -> bool:
        """Whether the file that the training goes on with has the slots of the optimizer, if there is one."""
        return not (self._saved and self._saved.document["model"].get("slots_left_out"))

    @property
    def steps(self) -> int:
        """Steps that were made when the file was written that the training goes on with; 0 where there is none."""
        return steps_of(self.path) if self.path else 0

    @property
    def phase(self) -> Mapping[str, Any]:
        """The phase in which the file was written, with its number, and the epoch and the step with which it began."""
        optimizer = self._saved.document["model"]["optimizer"] if self._saved else None
        return (optimizer or {}).get("phase") or {"number": 1, "epoch": 0, "step": 0}

    def change(
        self,
        *,
        goes_beyond: bool,
        begins_epoch: bool,
        classes: Sequence[ClassChange] = (),
        forgets_best: bool = False,
    ) -> list[str]:
        """Lets another training go on from the file: see `carry_over`.

        Args:
            goes_beyond: Whether the `fit`, or the phase, that has ended in the file goes on.
            begins_epoch: Whether the batches are others, so that an epoch is begun again.
            classes: The outputs whose classes are others than before.
            forgets_best: Whether the best values so far, and the weights of them, no longer count, since they are of
                other rows.

        Returns:
            The callbacks whose best value no longer counts.
        """
        assert self._saved is not None
        self._changed, self._classes = True, classes
        if goes_beyond:
            self._take_weights_before_average()
            self.position = replace(self.position, ended=False, stopped=False)
            begin_patience_anew(self._saved.document)
            undo_time_limit(self._saved.document)
        if begins_epoch:
            self.position = replace(self.position, step=0)
        self._now = self.position
        return forget_best(self._saved.document) if forgets_best else []

    def go_back(self, path: Path) -> bool:
        """Lets the training go on from an older file; returns whether that could be read."""
        try:
            saved = read_checkpoint(path)
        except ValueError:  # it is damaged
            return False
        self.path, self._saved, self.position = path, saved, Position(**saved.document["position"])
        self._now = self.position
        return True

    def _take_weights_before_average(self) -> None:
        """Goes back to the file of the same step in which the average has not yet replaced the weights."""
        assert self._saved is not None
        names = [row and row[1].slot for row in read_slot_table(self._saved.document["model"])]
        for path in checkpoint_files(self.folder)[1:] if "average" in names and self.position.ended else ():
            if steps_of(path) == self.steps and self.go_back(path):
                return

    def batches(self, x: Any, y: Any, *, batch_size: int, **options: Any) -> tf.data.Dataset:
        """Returns the batches of rows in memory, from the place on at which the training goes on.

        Args:
            x: Inputs, as for `training_batches`.
            y: Targets, likewise.
            batch_size: Rows in a batch, >= 1.
            options: More arguments of `training_batches`, such as `seed`.
        """
        self._seeks = True
        steps = -(-len(keras.tree.flatten(x)[0]) // batch_size)
        epoch, step = self.place(steps)
        return training_batches(x, y, batch_size=batch_size, first_epoch=epoch, first_step=step, **options)

    def place(self, steps_per_epoch: int) -> tuple[int, int]:
        """Returns the epoch and the step of the batch to go on with, both from 0, and begins no earlier."""
        self._seeks = True
        epoch, step = self.position.epoch, self.position.step
        return (epoch + 1, 0) if step >= steps_per_epoch else (epoch, step)

    def restore(self, model: Any) -> Position:
        """Puts the model where the file says, if there is one, and returns the place."""
        if self._saved is not None and self._pending:
            self._put_into(model)
            return self.position
        return Position()

    def save(self) -> bool:
        """Writes a file of the present step; returns whether that could be done."""
        if self._pending or not self._is_finite() or not self.writes:
            return False
        self._write(replace(self._now, stopped=bool(self._trained.stop_training)))
        self.wait()
        return not self._failing

    def wait(self) -> None:
        """Waits until no file is being written."""
        self._writer.wait()
        self._settle()

    def remove(self, *, keep: int = 0) -> None:
        """Removes the files of the folder but for the newest ones, and the one before the cooldown if none stays."""
        self.wait()
        prune(self.folder, keep)
        if not keep:
            prune(self.folder / BEFORE_COOLDOWN, 0)

    # -- What Keras calls ---------------------------------------------------------------------------------------------

    @property
    def _trained(self) -> Any:
        return self.model  # annotated as optional by Keras; while training runs it is there

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._next_time, self._metrics_before_test = time.monotonic(), None
        self._kernels = kernels_of(self._trained.train_function)
        if self._pending and not self._changed:
            self._check_kernels()
        check_calls(self.model, (self.params or {}).get("steps"))
        if not self._pending:
            if self.in_phases and self._now.ended:  # a phase begins after another
                self._write(replace(self._now, ended=False, stopped=False))
            return
        if not self.in_phases:
            # A `fit` that was ended by a callback trains no epoch more.
            set_initial_epoch(self._trained, 2**62 if self.position.stopped else self.position.epoch)
            self._sets_epoch = True
        self._restore_all()
        self._now = self.position

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        passed = 0
        if self._pending:
            self._arrive()
        if self._pending and self.position.step:
            # In the middle of this epoch. Keras has reset the metrics, and callbacks have begun the epoch anew.
            self._restore_all()
            passed = self.position.step
            skip_steps(self.model, self.position.step, read=not self._seeks, restore=self._restore_all)
        else:
            self._saved = None  # as large as weights and slots together
        self._pending, self._now = False, Position(epoch, passed)
        self._steps_before_epoch = self._steps_made() - passed
        self._loss = None
        self._next_step = passed + (self.every_steps or 0)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._settle()
        step = steps_done(self.model, first=self._first, last=batch)
        step = min(step, (self.params or {}).get("steps") or step)
        if step <= self._now.step:  # it was made before the checkpoint that this epoch goes on from
            if step + batch + 1 - self._first > self._now.step:
                # The last of these calls: the callbacks have counted steps that they had counted before.
                self._restore_callbacks()
            return
        self._now, self._saved = replace(self._now, step=step), None
        self._loss = (logs or {}).get("loss")
        is_last = self._is_last_before_cooldown(step, batch + 1 - self._first)
        if (self._is_due(step) or is_last) and not self._trained.stop_training and self._is_finite():
            self._write(self._now)
            if is_last:
                self.wait()
            if is_last and self.path and not self._failing:
                copy_checkpoint(self.path, self.folder / BEFORE_COOLDOWN)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._metrics_before_test = metrics_state(self.model)  # which the evaluation begins with resetting

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._now, self._metrics_before_test, self._ended_epoch = Position(epoch + 1), None, (epoch, dict(logs or {}))
        stops = bool(self._trained.stop_training)
        # At the end of `fit` the average replaces the weights, from which no longer training could go on.
        is_last = stops or epoch + 1 == (self.params or {}).get("epochs")
        before_average = is_last and getattr(unwrap(self._trained.optimizer), "use_ema", False)
        if (before_average or (time.monotonic() >= self._next_time and not stops)) and self._is_finite():
            self._write(replace(self._now, stopped=stops))
        self._ended_epoch = None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._pending:  # and no epoch was left
            self._arrive()
            self._pending, self._saved = False, None
        # A `fit` that was over in the process before, and makes no step here, was stopped there.
        stopped = bool(self._trained.stop_training) or (self._now == self.position and self.position.stopped)
        self._now = replace(self._now, ended=True, stopped=stopped)
        if self._is_finite():
            self._write(self._now)
        self.wait()
        if self._sets_epoch:
            set_initial_epoch(self._trained, None)  # a later `fit` begins where its arguments say

    # -- Within -------------------------------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        if self.every_steps is None:
            return time.monotonic() >= self._next_time
        if step < self._next_step:
            return False
        self._next_step = (step // self.every_steps + 1) * self.every_steps
        return True

    def _is_last_before_cooldown(self, step: int, size: int) -> bool:
        """Whether the next call of as many steps as any so far would make a step at a rate that falls."""
        made, self._longest_call = self._steps_before_epoch + step, max(self._longest_call, size)
        return self.cooldown_at is not None and made <= self.cooldown_at < made + self._longest_call

    def _steps_made(self) -> int:
        return int(as_float(unwrap(self._trained.optimizer).iterations))

    def _is_finite(self) -> bool:
        return self._loss is None or math.isfinite(float(self._loss))

    def _restore_all(self) -> None:
        assert self._saved is not None
        if not self._trained.optimizer.built:
            with scope_of(self._trained):
                self._trained.optimizer.build(self._trained.trainable_variables)
        self._put_into(self.model)
        self._restore_callbacks()

    def _put_into(self, model: Any) -> None:
        assert self._saved is not None
        state = self._saved.arrays, self._saved.document["model"]
        if self._changed or not self.holds_slots:
            self.carried = carry_over(model, *state, source=str(self.path), classes=self._classes)
        else:
            restore_model(model, *state, source=str(self.path))

    def _check_kernels(self) -> None:
        assert self._saved is not None
        before, now = self._saved.document.get("kernels", "exact"), self._kernels
        if before != now:
            raise TrainingError(
                f"A training goes on with the kernels it was begun with, or its bits are others. `{self.path}` is of "
                f"one with `kernels: {before}`, and it goes on with `kernels: {now}`. Pass `kernels={before!r}`, or "
                "begin another training in another folder."
            )

    def _restore_callbacks(self) -> None:
        assert self._saved is not None
        restore_callbacks(self.callbacks, self._saved.document["callbacks"], self._saved.arrays, source=str(self.path))

    def _arrive(self) -> None:
        """Gives Keras' `History`, which begins after this callback does, the epochs of the process before."""
        assert self._saved is not None
        history, saved = self._trained.history, self._saved.document["history"]
        history.epoch = list(saved["epoch"])
        history.history = {name: list(values) for name, values in saved["history"].items()}

    def _history(self) -> dict[str, Any]:
        history = self._trained.history
        # Before its `on_train_begin` it has no list of epochs.
        epochs: list[int] = list(getattr(history, "epoch", ()))
        values = {name: [*map(float, of)] for name, of in history.history.items()}
        if self._ended_epoch:
            epoch, logs = self._ended_epoch
            epochs.append(epoch)
            values |= {name: [*values.get(name, []), float(value)] for name, value in logs.items()}
        return {"epoch": epochs, "history": values}

    def _write(self, position: Position) -> None:
        if not self.writes:
            return
        self.wait()  # a second copy would take more memory
        begun = time.monotonic()
        arrays, state = model_state(self.model, slots=self.slots)
        states, of_callbacks = callback_states(self.callbacks)
        document = {
            "position": asdict(position),
            "kernels": self._kernels,
            "model": state,
            "callbacks": states,
            "history": self._history(),
            "more": dict(self.more()),
        }
        content = Saved(arrays | (self._metrics_before_test or {}) | of_callbacks, document)
        self._writer.write(content, steps=self._steps_made())
        self._next_time, self._copied = math.inf, time.monotonic() - begun
        self._settle()

    def _settle(self) -> None:
        """Takes note of what came of the latest file, once it is written."""
        written = self._writer.result()
        if written is None:
            return
        self.path = written.path or self.path
        if written.error and not self._failing:
            self.report(f"warning: {written.error} Training goes on; a later checkpoint tries again.")
        self._failing = bool(written.error)
        # Also what the thread has taken: on a CPU it takes that from the steps.
        self._next_time = time.monotonic() + min(self.every_seconds, (self._copied + written.seconds) / _SHARE)
