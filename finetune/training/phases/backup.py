"""Keras' `BackupAndRestore` in a run of several phases, each of which is a `fit` of its own.

Keras' callback restores when a `fit` begins and deletes its files when it ends. Here it restores once, before the first
phase that is still to be trained, and deletes its files after the last. It restores at the begin of an epoch, as in
Keras; what callbacks count, such as the patience of `until`, starts anew.
"""

from collections.abc import Sequence
from typing import Any

import keras

from finetune.errors import TrainingError
from finetune.keras_private import take_initial_epoch
from finetune.optimizers.saved_state import PhasePosition
from finetune.training.phases.phase import Phase


class PhaseBackup(keras.callbacks.Callback):
    """Takes the place of a `BackupAndRestore` among the callbacks of every phase.

    Args:
        callback: The callback of the user.
    """

    def __init__(self, callback: keras.callbacks.BackupAndRestore):
        super().__init__()
        self.callback = callback
        self._epochs = 0  # that have ended in this process, counted through the phases

    def restore(self, model: keras.Model) -> int:
        """Loads weights and optimizer, if there is a backup; returns the epoch with which to go on, else 0."""
        self.callback.set_model(model)
        # Keras' callback looks for its files when a `fit` begins, and leaves the epoch in an attribute of the model.
        self.callback.on_train_begin()
        return take_initial_epoch(model, self.callback)

    def finish(self) -> None:
        """Tells the callback that the run has ended: it then deletes its files."""
        self.callback.on_train_end()

    def set_model(self, model: Any) -> None:
        """Called by Keras with the model before training begins."""
        super().set_model(model)
        self.callback.set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._epochs:  # of a phase before: a run that is killed from here on begins with this phase
            self.callback.on_epoch_end(self._epochs - 1)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs = epoch + 1
        self.callback.on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.callback.on_train_batch_end(batch, logs)


def with_phase_backups(callbacks: Any) -> tuple[list[keras.callbacks.Callback], list[PhaseBackup]]:
    """Returns callbacks with a `PhaseBackup` in place of each `BackupAndRestore`, and these alone.

    Args:
        callbacks: As `fit` takes them: a callback, several in any structure, or `None`.
    """
    # `fit` takes any structure of callbacks, so a backup may be deep in a list of lists.
    flat = keras.tree.flatten(callbacks) if callbacks else []
    made: list[keras.callbacks.Callback] = [
        PhaseBackup(c) if isinstance(c, keras.callbacks.BackupAndRestore) else c for c in flat
    ]
    return made, [callback for callback in made if isinstance(callback, PhaseBackup)]


def check_position(
    position: PhasePosition | None, epoch: int, phases: Sequence[Phase], what: str = "`BackupAndRestore`"
) -> None:
    """Checks that a run can go on from a backup.

    Args:
        position: The phase in which the backup was made; `None` if it does not say.
        epoch: The epoch with which to go on; 0 where there is no backup.
        phases: Of this run.
        what: Wrote the backup, for the message.

    Raises:
        TrainingError: The backup is of another run.
    """
    if position is None and not epoch:
        return
    if position is None:
        received = "one that holds no phase: it is of a `fit` without phases, or of an optimizer with other groups"
    elif position.number > len(phases):
        received = f"one of phase {position.number}, and there are {len(phases)} phases"
    else:
        return
    raise TrainingError(
        f"{what} goes on with the run that made its backup. Received {received}. Run the same phases "
        "with the same groups, or delete the backup to begin anew."
    )
