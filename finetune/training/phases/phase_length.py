"""How long a phase is: its epochs are counted, and a phase in steps ends after just as many."""

from collections.abc import Callable
from typing import Any

import keras

from finetune.training.fast.steps_per_call import limit_next_call, steps_done


class EpochWatch(keras.callbacks.Callback):
    """Counts the epochs of a phase, and checks after each of them that the model is still as planned.

    Args:
        check: Raises an error if it is not.

    Attributes:
        epochs: Epochs begun.
    """

    not_resumed = ("epochs",)

    def __init__(self, check: Callable[[], None]):
        super().__init__()
        self.check = check
        self.epochs = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()


class StopAfterSteps(keras.callbacks.Callback):
    """Ends a phase after a number of steps, in the middle of an epoch if need be.

    Args:
        steps: The number, >= 1.
        resumes: Whether a checkpoint notes what is made of them, so that in a phase that goes on `steps` is the whole
            number. For epochs of unknown length: of others the place in the training says it.
    """

    not_resumed = ("_first",)

    def __init__(self, steps: int, *, resumes: bool = False):
        super().__init__()
        self.steps = steps
        if not resumes:
            self.not_resumed = (*self.not_resumed, "_of_former_epochs", "_made")
        # Keras counts the batches of each epoch from 0.
        self._of_former_epochs = self._made = self._first = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._of_former_epochs = self._made

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = batch
        # A call may make several steps; without a limit the last call would make more than are left.
        limit_next_call(self.model, self.steps - self._of_former_epochs - batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = steps_done(self.model, first=self._first, last=batch)
        # A call of Keras' own function may be planned beyond the end of the epoch.
        self._made = self._of_former_epochs + min(done, (self.params or {}).get("steps") or done)
        if self._made >= self.steps:
            # As Keras' own callbacks end a `fit`: it goes on to the end of the batch, validates, and stops.
            model: Any = self.model
            model.stop_training = True
