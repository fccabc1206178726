"""The file that a training goes on from: its place, its data, and how it is put into a model and its callbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from finetune.errors import TrainingError
from finetune.training.checkpoints.callback_state import restore_callbacks
from finetune.training.checkpoints.carried_state import CarriedPart, carry_over
from finetune.training.checkpoints.changed_document import begin_patience_anew, forget_best, undo_time_limit
from finetune.training.checkpoints.checkpoint_file import (
    checkpoint_files,
    read_checkpoint,
    read_newest,
    steps_of,
)
from finetune.training.checkpoints.class_columns import ClassChange
from finetune.training.checkpoints.model_state import restore_model
from finetune.training.checkpoints.slot_names import read_slot_table


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


class ResumedFile:
    """The newest checkpoint of a folder that is whole, if there is one.

    Args:
        folder: Of the checkpoints.

    Attributes:
        path: The file; `None` where there is none.
        damaged: Newer files, which are not whole, with what is wrong with each.
        position: Where the training goes on.
        saved: The content; `None` where there is no file, and once the training has gone on from it.
        carried: What was carried, in a training that goes on changed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path, self.saved, self.damaged = read_newest(folder)
        self.position = Position(**self.saved.document["position"]) if self.saved else Position()
        self.carried: list[CarriedPart] | None = None
        self._changed = False
        self._classes: Sequence[ClassChange] = ()

    @property
    def document(self) -> Mapping[str, Any]:
        """What the training has noted beside the model; empty where there is no file, and once it has gone on."""
        return self.saved.document["more"] if self.saved else {}

    @property
    def holds_slots(self) -> bool:
        """Whether the file has the slots of the optimizer, if there is a file."""
        return not (self.saved and self.saved.document["model"].get("slots_left_out"))

    @property
    def steps(self) -> int:
        """Steps that were made when the file was written; 0 where there is none."""
        return steps_of(self.path) if self.path else 0

    @property
    def phase(self) -> Mapping[str, Any]:
        """The phase in which the file was written, with its number, and the epoch and the step with which it began."""
        optimizer = self.saved.document["model"]["optimizer"] if self.saved else None
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
        assert self.saved is not None
        self._changed, self._classes = True, classes
        if goes_beyond:
            self._take_weights_before_average()
            self.position = replace(self.position, ended=False, stopped=False)
            begin_patience_anew(self.saved.document)
            undo_time_limit(self.saved.document)
        if begins_epoch:
            self.position = replace(self.position, step=0)
        return forget_best(self.saved.document) if forgets_best else []

    def go_back(self, path: Path) -> bool:
        """Takes an older file; returns whether that could be read."""
        try:
            saved = read_checkpoint(path)
        except ValueError:  # it is damaged
            return False
        self.path, self.saved, self.position = path, saved, Position(**saved.document["position"])
        return True

    def _take_weights_before_average(self) -> None:
        """Goes back to the file of the same step in which the average has not yet replaced the weights."""
        assert self.saved is not None
        names = [row and row[1].slot for row in read_slot_table(self.saved.document["model"])]
        for path in checkpoint_files(self.folder)[1:] if "average" in names and self.position.ended else ():
            if steps_of(path) == self.steps and self.go_back(path):
                return

    def check_kernels(self, kernels: str) -> None:
        """Checks that a training goes on with the kernels it was begun with; one that is changed may take others.

        Raises:
            TrainingError: They are others.
        """
        assert self.saved is not None
        before = self.saved.document.get("kernels", "exact")
        if before != kernels and not self._changed:
            raise TrainingError(
                f"A training goes on with the kernels it was begun with, or its bits are others. `{self.path}` is of "
                f"one with `kernels: {before}`, and it goes on with `kernels: {kernels}`. Pass `kernels={before!r}`, "
                "or begin another training in another folder."
            )

    def put_into(self, model: Any) -> None:
        """Gives a compiled model the weights and the state of its optimizer; sets `carried` in a changed training.

        Raises:
            TrainingError: The file is of another model, optimizer or groups.
        """
        assert self.saved is not None
        state = self.saved.arrays, self.saved.document["model"]
        if self._changed or not self.holds_slots:
            self.carried = carry_over(model, *state, source=str(self.path), classes=self._classes)
        else:
            restore_model(model, *state, source=str(self.path))

    def put_into_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Gives callbacks the state that those of their kind had."""
        assert self.saved is not None
        restore_callbacks(callbacks, self.saved.document["callbacks"], self.saved.arrays, source=str(self.path))

    def put_into_history(self, history: Any) -> None:
        """Gives Keras' `History` the epochs of the process before."""
        assert self.saved is not None
        saved = self.saved.document["history"]
        history.epoch = list(saved["epoch"])
        history.history = {name: list(values) for name, values in saved["history"].items()}
