"""What `fit` does with a step whose gradients are not finite numbers: it stops, or leaves the step out.

The decision is made within the step, by `finetune.optimizers.finite_gradients`; the callback here reads what happened.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NoReturn

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.strategy import is_adopted, replicas_of
from finetune.distribution.workers import training_workers
from finetune.errors import GroupError, TrainingError, printable, quote
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.finite_gradients import FiniteGradients, Record
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.compiled_steps import FastFunction
from finetune.variables import tf_variable

ANSWERS = ("stop", "skip")
# A float16 loss begins with the scale 2 ** 15 and halves it in each step that overflows: 15 of them lead to 1.
MOST_IN_ROW = 20
_SECONDS = 1.0  # between two readings of the record, each of which waits for the steps that are being computed


@dataclass(frozen=True)
class FirstLeftOut:
    """The first step that was left out.

    Attributes:
        epoch: From 1.
        step: Of this epoch, from 1.
        variable: Name of the first variable whose gradient was not finite; empty where it is not known.
        group: Its layer group; empty where the groups are not known.
    """

    epoch: int
    step: int
    variable: str
    group: str

    def __str__(self) -> str:
        group = f" (group `{printable(self.group)}`)" if self.group else ""
        of_variable = f": the gradient of `{printable(self.variable)}`{group}" if self.variable else ""
        return f"epoch {self.epoch}, step {self.step}{of_variable}"


class NonFiniteGradients(keras.callbacks.Callback):
    """Makes no step whose gradients are not finite numbers.

    A step that is left out changes nothing: no weight, slot, moving average, accumulated gradient or step counter, so
    that schedules do not advance; and no moving statistic, and not the mean of the loss over the epoch. Other metrics
    see its rows. Without this callback such a step makes every weight NaN that it reaches.

    It costs two passes over the gradients in each step, and a copy of the moving statistics; nothing without it. Under
    `mixed_float16` Keras' `LossScaleOptimizer` leaves out such steps by itself, and halves the scale of the loss. They
    are counted here, and `fit` ends after 20 of them in a row, under either answer.

    Args:
        answer: `stop`: the first such step ends `fit`, with the weights that it began with. `skip`: training goes on
            with the next batch.
        groups: All layer groups of the model, whose names are in the messages.
        most_in_row: With `skip`, how many steps in a row may be left out, >= 0. One more ends `fit`, and so does an
            epoch in which no step was made.

    Attributes:
        skipped: How many steps were left out.
        stopped_at: The first of them where it ended `fit`; otherwise `None`.
        first: The first of them, as far as it is known; `None` if there is none.

    Raises:
        TrainingError: In `fit`, where it ends.
        GroupError: The answer is something else, or the model is not compiled with a `GroupedOptimizer`, or Keras' own
            `fit` trains it on several replicas.

    Examples:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
        >>> model.compile(GroupedOptimizer([(keras.optimizers.Adam(1e-3), model)]), "mse")
        >>> x = np.ones((32, 2))
        >>> x[3, 0] = np.nan
        >>> careful = NonFiniteGradients("skip")
        >>> history = model.fit(x, np.ones((32, 1)), batch_size=4, shuffle=False, verbose=0, callbacks=[careful])
        >>> careful.skipped, str(careful.first)
        (1, 'epoch 1, step 1: the gradient of `head/kernel`')
    """

    def __init__(self, answer: str = "stop", groups: Sequence[LayerGroup] = (), *, most_in_row: int = MOST_IN_ROW):
        super().__init__()
        if answer not in ANSWERS:
            raise GroupError(f"`answer` must be one of {quote(ANSWERS)}. Received `{printable(answer)}`. Choose one.")
        self.answer, self.groups = answer, tuple(groups)
        self.most_in_row = most_in_row if answer == "skip" else 0
        self.guard: FiniteGradients | None = None
        self.skipped = 0
        self.stopped_at: FirstLeftOut | None = None
        self.first: FirstLeftOut | None = None
        self._record = Record()
        self._before = 0  # steps made before the present epoch
        self._epochs: list[tuple[int, int]] = []  # each epoch, from 1, with the steps in the record before it

    # -- Putting the guard into the optimizer --------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Puts the guard into the optimizer. Keras calls this before it makes its train function."""
        super().set_model(model)
        optimizer = unwrap(model.optimizer)
        if not isinstance(optimizer, GroupedOptimizer):
            raise GroupError(
                "`NonFiniteGradients` decides about the steps of a `finetune.GroupedOptimizer`. The model is compiled "
                f"with `{type(optimizer).__name__}`. Put it into a `GroupedOptimizer`, as its only group if need be."
            )
        if replicas_of(model) > 1 and not is_adopted(model):
            raise GroupError(
                "`NonFiniteGradients` decides about steps of the whole batch, which `train_phases` and recipes make "
                f"on several replicas. Keras' own `fit` is to train the model, on {replicas_of(model)} replicas. Train "
                "it with `finetune.train_phases`, or leave it out and check the weights with `finetune.FiniteWeights`."
            )
        if optimizer.finite_gradients is self.guard is not None:
            return
        if self.guard is None:
            scaled = optimizer is not model.optimizer
            self.guard = FiniteGradients(max(self.most_in_row, MOST_IN_ROW) if scaled else self.most_in_row)
        self.guard.protect(_written_by_forward(model))
        optimizer.finite_gradients = self.guard
        if optimizer is not model.optimizer:
            keras_private.call_at_overflow(model.optimizer, self.guard.leave_out)
        if not isinstance(model.train_function, FastFunction):
            model.train_function = None  # it may have been traced without the guard

    def _remove(self) -> None:
        """Takes the guard out again, so that a later `fit` without this callback does not leave out steps silently."""
        model: Any = self.model
        if self.guard is not None and unwrap(model.optimizer).finite_gradients is self.guard:
            unwrap(model.optimizer).finite_gradients = None
            if unwrap(model.optimizer) is not model.optimizer:
                keras_private.call_at_overflow(model.optimizer, None)
            if not isinstance(model.train_function, FastFunction):
                model.train_function = None

    def summary(self) -> str:
        """Returns a sentence on the steps that were left out; empty where there is none."""
        if not self.skipped:
            return ""
        count = f"{self.skipped:,} of {self._record.steps:,} steps were" if self.skipped > 1 else "a step was"
        return f"{count} left out, since gradients were not finite; the first in {self.first}"

    # -- Going on in another process -----------------------------------------------------------------------------------

    def state_to_resume(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, so that the counts go on in the process that goes on with the training."""
        record = self.guard.record if self.guard else self._record
        if record.first and not self.first:
            self.first = self._place(record)  # the next process may number the variables otherwise
        first = astuple(self.first) if self.first else None
        return {"record": astuple(record), "first": first, "epochs": self._epochs, "made_before": self._before}

    def resume_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_to_resume` has returned."""
        self._record, self._epochs, self._before = Record(*state["record"]), state["epochs"], state["made_before"]
        self.first = FirstLeftOut(*state["first"]) if state["first"] else None
        self.skipped = self._record.left_out
        if self.guard:
            self.guard.record = self._record

    # -- Reading what happened -----------------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        assert self.guard is not None
        self.guard.record = self._record  # a measurement of steps before training has its own
        self._next = time.monotonic() + _SECONDS

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self.guard is not None
        self.guard.take_copies()  # Keras sets the mean of the loss back to 0
        self._record = self.guard.record
        self._epochs.append((epoch + 1, self._record.steps))
        self._before = self._made

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # All workers look after the same step, so that all end with the same sentence.
        if training_workers() or time.monotonic() >= self._next:
            self._read()
            self._next = time.monotonic() + _SECONDS

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._read()
        if self._made == self._before:
            self._fail(f"No step of epoch {epoch + 1} was made, since the gradients of all were not finite.")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._remove()

    @property
    def _made(self) -> int:
        return self._record.steps - self._record.left_out

    def _read(self) -> None:
        """Reads the record, and ends `fit` where no further step is made."""
        assert self.guard is not None
        record = self._record = self.guard.record
        self.skipped = record.left_out
        if record.first and not self.first:
            self.first = self._place(record)
        if record.in_row <= self.guard.most_in_row:
            return
        if self.answer == "stop" and record.left_out == 1:
            self.stopped_at = self.first
            self._fail(f"They were not in {self.first}.")
        self._fail(f"Those of {record.in_row} steps in a row were not. The first was left out in {self.first}.")

    def _fail(self, what: str) -> NoReturn:
        self._remove()
        advice = "or leave such steps out (`skip`)" if self.answer == "stop" else "or clip the gradients"
        raise TrainingError(
            f"Gradients must be finite numbers. {what} No such step was made: the weights are those of the step "
            f"before. Look at the examples of that step, lower the learning rates, {advice}."
        )

    def _place(self, record: Record) -> FirstLeftOut:
        assert self.guard is not None
        epoch, before = max((each for each in self._epochs if each[1] < record.first), key=lambda each: each[1])
        if record.position < 0:
            return FirstLeftOut(epoch, record.first - before, "", "")
        variable = self.guard.variables[record.position]
        names = {id(tf_variable(leaf.variable)): (leaf.name, "") for leaf in layer_tree(self.model).leaves}
        names |= {id(tf_variable(x.variable)): (x.name, group.name) for group in self.groups for x in group.leaves}
        return FirstLeftOut(epoch, record.first - before, *names[id(tf_variable(variable))])


def _written_by_forward(model: Any) -> Iterator[Any]:
    """Yields what a forward pass writes: statistics of layers that are not frozen, and the means of losses."""
    for leaf in layer_tree(model).leaves:
        if not leaf.trainable and getattr(leaf.owner, "trainable", True) and _is_float(leaf.variable):
            yield leaf.variable
    losses = keras_private.compiled_loss(model)
    for metric in (keras_private.loss_tracker(model), *(getattr(losses, "metrics", None) or ())):
        yield from metric.variables


def _is_float(variable: Any) -> bool:
    return tf.as_dtype(tf_variable(variable).dtype).is_floating
