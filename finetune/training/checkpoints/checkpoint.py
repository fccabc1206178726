"""`Checkpoint`: a training that is killed goes on where it was, with the bits of one that was not."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
from finetune.training.checkpoints.callback_state import callback_states
from finetune.training.checkpoints.checkpoint_file import (
    BEFORE_COOLDOWN,
    Saved,
    copy_checkpoint,
    prune,
)
from finetune.training.checkpoints.checkpoint_writer import CheckpointWriter
from finetune.training.checkpoints.model_state import metrics_state, model_state
from finetune.training.checkpoints.resumed_file import Position, ResumedFile
from finetune.training.checkpoints.writing_times import WritingTimes
from finetune.training.fast.steps_per_call import check_calls, skip_steps, steps_done


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
        self.folder, self.times = Path(folder), WritingTimes(every_seconds, every_steps)
        self._writer = CheckpointWriter(self.folder, keep)
        self.resumed = ResumedFile(self.folder)
        self.goes_on = self.resumed.saved is not None  # and has not reached the place yet
        self.callbacks: list[keras.callbacks.Callback] = list(one_or_more(callbacks))
        # Further plain data that a file holds, for a training that has more than a model.
        self.more: Callable[[], Mapping[str, Any]] = dict
        self.report: Callable[[str], None] = lambda sentence: None
        self.slots = True  # whether files hold those of a `GroupedOptimizer`
        self.writes = True  # of several workers, one does
        self.in_phases = False  # whether somebody else calls `restore` before each `fit`
        self._seeks = False
        self._now = self.position
        self._metrics_before_test: dict[str, np.ndarray] | None = None
        self._failing = False
        self._kernels = "exact"
        self._written: Path | None = None  # the newest file of this process
        self._loss: Any = None
        self._sets_epoch = False
        self._ended_epoch: tuple[int, dict[str, Any]] | None = None  # which Keras' `History` does not have yet

    # -- What a training asks it ----------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the training goes on."""
        return self.resumed.position

    @property
    def path(self) -> Path | None:
        """The newest file that is whole; `None` where there is none."""
        return self._written or self.resumed.path

    @property
    def damaged(self) -> dict[Path, str]:
        """Newer files, which are not whole, with what is wrong with each."""
        return self.resumed.damaged

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
        if self.goes_on:
            self.resumed.put_into(model)
            return self.position
        return Position()

    def save(self) -> bool:
        """Writes a file of the present step; returns whether that could be done.

        Before `fit` has begun, as where a signal comes while it builds the step, there is no step to write.
        """
        if self.goes_on or self.model is None or not self._is_finite() or not self.writes:
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
        self.times.begin_training()
        self._metrics_before_test = None
        self._kernels = kernels_of(self._trained.train_function)
        if self.goes_on:
            self.resumed.check_kernels(self._kernels)
        check_calls(self.model, (self.params or {}).get("steps"))
        if not self.goes_on:
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
        if self.goes_on:
            self.resumed.put_into_history(self._trained.history)  # it begins after this callback does
        if self.goes_on and self.position.step:
            # In the middle of this epoch. Keras has reset the metrics, and callbacks have begun the epoch anew.
            self._restore_all()
            passed = self.position.step
            skip_steps(self.model, self.position.step, read=not self._seeks, restore=self._restore_all)
        else:
            self.resumed.saved = None  # as large as weights and slots together
        self.goes_on, self._now, self._loss = False, Position(epoch, passed), None
        self.times.begin_epoch(passed, made=self._steps_made() - passed)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._settle()
        step = steps_done(self.model, first=self._first, last=batch)
        step = min(step, (self.params or {}).get("steps") or step)
        if step <= self._now.step:  # it was made before the checkpoint that this epoch goes on from
            if step + batch + 1 - self._first > self._now.step:
                # The last of these calls: the callbacks have counted steps that they had counted before.
                self.resumed.put_into_callbacks(self.callbacks)
            return
        self._now, self.resumed.saved = replace(self._now, step=step), None
        self._loss = (logs or {}).get("loss")
        is_last = self.times.is_last_before_cooldown(step, batch + 1 - self._first)
        if (self.times.is_due(step) or is_last) and not self._trained.stop_training and self._is_finite():
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
        if (before_average or (self.times.seconds_have_passed() and not stops)) and self._is_finite():
            self._write(replace(self._now, stopped=stops))
        self._ended_epoch = None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.goes_on:  # and no epoch was left
            self.resumed.put_into_history(self._trained.history)
            self.goes_on, self.resumed.saved = False, None
        # A `fit` that was over in the process before, and makes no step here, was stopped there.
        stopped = bool(self._trained.stop_training) or (self._now == self.position and self.position.stopped)
        self._now = replace(self._now, ended=True, stopped=stopped)
        if self._is_finite():
            self._write(self._now)
        self.wait()
        if self._sets_epoch:
            set_initial_epoch(self._trained, None)  # a later `fit` begins where its arguments say

    # -- Within -------------------------------------------------------------------------------------------------------

    def _steps_made(self) -> int:
        return int(as_float(unwrap(self._trained.optimizer).iterations))

    def _is_finite(self) -> bool:
        return self._loss is None or math.isfinite(float(self._loss))

    def _restore_all(self) -> None:
        if not self._trained.optimizer.built:
            with scope_of(self._trained):
                self._trained.optimizer.build(self._trained.trainable_variables)
        self.resumed.put_into(self.model)
        self.resumed.put_into_callbacks(self.callbacks)

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
        self.times.copied(time.monotonic() - begun)
        self._settle()

    def _settle(self) -> None:
        """Takes note of what came of the latest file, once it is written."""
        written = self._writer.result()
        if written is None:
            return
        self._written = written.path or self._written
        if written.error and not self._failing:
            self.report(f"warning: {written.error} Training goes on; a later checkpoint tries again.")
        self._failing = bool(written.error)
        self.times.written(written.seconds)
