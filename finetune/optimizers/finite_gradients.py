"""A step is made only where all its gradients are finite numbers; the others leave no trace.

What a step left out changes is what in optax `apply_if_finite` and in Keras `LossScaleOptimizer` leave unchanged: no
weight, no slot, no moving average, no accumulated gradient and no step counter, so that schedules and bias corrections
do not advance. What its forward pass has written before (moving statistics, the mean of the loss) is put back, too:
after the pass nothing tells in a moving mean that a single batch was NaN.

Several steps share a call of a compiled function, and XLA compiles no exception. So a step raises nothing: it writes
into a record, which the callback `finetune.training.non_finite_gradients.NonFiniteGradients` reads from time to time.
Once too many steps in a row were left out no further step is made, however late the record is read.

On several replicas the gradients that must be finite are the sums over all of them, and so is the decision; each
replica gets back what its forward pass has written.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from finetune.optimizers.replicas import gradients_summed, in_every_replica, update_once
from finetune.variables import copies_of

_IN_ROW = 2  # the place of `Record.in_row`


@dataclass(frozen=True)
class Record:
    """What happened to the steps so far.

    Attributes:
        steps: Steps, made or left out.
        left_out: Steps that were left out as their gradients were not finite.
        in_row: The latest of these, without a step that was made in between.
        first: Which of the steps was the first to be left out, from 1; 0 if there is none.
        position: Which variable had the first gradient that was not finite; -1 if there is none.
    """

    steps: int = 0
    left_out: int = 0
    in_row: int = 0
    first: int = 0
    position: int = -1


class FiniteGradients:
    """Decides in every step of an optimizer whether it is made.

    Args:
        most_in_row: How many steps in a row may be left out, >= 0. After one more no step is made any more.

    Attributes:
        variables: Those that were trained, in the order that `Record.position` counts in.
    """

    def __init__(self, most_in_row: int):
        self.most_in_row = most_in_row
        self.variables: list[Any] = []
        self._record = tf.Variable(tf.constant([*vars(Record()).values()], tf.int64), trainable=False)
        self._protected: list[Any] = []
        self._copies: list[tf.Variable] = []

    @property
    def record(self) -> Record:
        """What happened so far. Reading it waits for the steps that are being computed."""
        return Record(*map(int, self._record.numpy()))

    @record.setter
    def record(self, record: Record) -> None:
        self._record.assign(list(vars(record).values()))

    @property
    def too_many(self) -> bool:
        """Whether no step is made any more."""
        return self.record.in_row > self.most_in_row

    def protect(self, variables: Iterable[Any]) -> None:
        """Lets these variables, too, be as they were before a step that is left out.

        Args:
            variables: What a forward pass writes: moving statistics, and the mean of the loss.
        """
        self._protected = [part for variable in variables for part in copies_of(variable)]
        self._copies = []
        for part in self._protected:
            with tf.device(part.device):
                self._copies.append(tf.Variable(part, trainable=False))

    def take_copies(self) -> None:
        """Takes the present values of the protected variables for those before the next step.

        It is called whenever other code may have written them, as at the begin of an epoch.
        """
        for variable, copy in zip(self._protected, self._copies, strict=True):
            copy.assign(variable, read_value=False)

    def apply(
        self, gradients: Sequence[Any], variables: Sequence[Any], update: Callable[[list[Any], list[Any]], None]
    ) -> None:
        """Calls `update` with gradients and variables if all gradients are finite.

        Args:
            gradients: One for each variable, dense, sparse or `None`.
            variables: What is trained.
            update: Makes the step.
        """
        gradients, variables = list(gradients), list(variables)
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        if not places:
            update(gradients, variables)  # which says that there are no gradients
            return

        def decide(sums: list[Any], variables: list[Any]) -> None:
            for place, total in zip(places, sums, strict=True):
                gradients[place] = total
            with gradients_summed():
                pairs = [(gradients[place], variables[place]) for place in places]
                self._decide(pairs, lambda: in_every_replica(update, gradients, variables))

        update_once(decide, [gradients[place] for place in places], variables)

    def _decide(self, pairs: Sequence[tuple[Any, Any]], update: Callable[[], None]) -> None:
        """Calls `update()` if the gradients of all pairs of gradient and variable are finite."""
        bad = tf.stack([tf.logical_not(_all_finite(gradient)) for gradient, _ in pairs])
        positions = tf.constant([self._position(variable) for _, variable in pairs], tf.int64)
        is_bad, is_over = tf.reduce_any(bad), self._record.read_value()[_IN_ROW] > self.most_in_row

        def made() -> tf.Tensor:
            update()
            self.take_copies()
            return tf.constant(True)

        def not_made() -> tf.Tensor:
            self._put_back()
            return tf.constant(False)

        tf.cond(is_over | is_bad, not_made, made)
        self._note(is_bad, tf.gather(positions, tf.argmax(tf.cast(bad, tf.int32))))

    def leave_out(self) -> None:
        """Counts a step that other code leaves out, as `LossScaleOptimizer` does where a float16 gradient overflows."""
        self._put_back()
        self._note(tf.constant(True), tf.constant(-1, tf.int64))

    def _put_back(self) -> None:
        for variable, copy in zip(self._protected, self._copies, strict=True):
            variable.assign(copy, read_value=False)

    def _note(self, is_bad: tf.Tensor, of_first: tf.Tensor) -> None:
        steps, left_out, in_row, first, position = tf.unstack(self._record.read_value())
        is_over = in_row > self.most_in_row
        counts = is_bad & ~is_over
        is_first = counts & (first == 0)
        new_row = tf.where(is_bad, in_row + 1, tf.zeros_like(in_row))
        self._record.assign(
            [
                steps + 1,
                left_out + tf.cast(counts, tf.int64),
                tf.where(is_over, in_row, new_row),
                tf.where(is_first, steps + 1, first),
                tf.where(is_first, of_first, position),
            ],
            read_value=False,
        )

    def loss_of_step(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss of the step that was just traced, and 0 where the step was left out."""
        return tf.where(self._record.read_value()[_IN_ROW] > 0, tf.zeros_like(loss), loss)

    def _position(self, variable: Any) -> int:
        position = next((n for n, known in enumerate(self.variables) if known is variable), None)
        if position is None:
            position = len(self.variables)
            self.variables.append(variable)
        return position


def _all_finite(gradient: Any) -> tf.Tensor:
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)
    if values.dtype.is_complex:
        return tf.reduce_all(tf.math.is_finite(tf.math.real(values)) & tf.math.is_finite(tf.math.imag(values)))
    # The float8 types have no kernel. A bfloat16 holds every value of theirs.
    values = values if values.dtype.size > 1 else tf.cast(values, tf.bfloat16)
    return tf.reduce_all(tf.math.is_finite(values)) if values.dtype.is_floating else tf.constant(True)
