"""How many steps of training share a call of the train function: the one place that decides and that answers.

Keras calls `model.train_function` in a loop and runs the callbacks between two calls. A call of a compiled function
costs a fixed time, so on small models several steps share a call. Five parties have a say in how many:

- the user: `model.compile(steps_per_execution=n)`, which Keras reads when `fit` and `evaluate` begin;
- `share_calls`: it times a step and chooses a number, where a run may choose for itself;
- the end of an epoch, and the end of a phase that is given in steps: they limit the next call (`limit_next_call`);
- a loss that is not a finite number: it ends the call early;
- a checkpoint in the middle of an epoch: the steps before it are passed over (`skip_steps`).

Only our train function (`finetune.training.fast.compiled_steps.FastFunction`) has a `Calls`, which holds these numbers.
Keras' own function always makes `model.steps_per_execution` steps, so the functions below do nothing to it, except for
`divide_evenly`, which is for it alone.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.workers import training_workers
from finetune.errors import TrainingError
from finetune.training.fast.fallback_reasons import reason_against
from finetune.training.snapshot import no_trace

CALL_SECONDS = 0.05  # of a call whose steps are chosen: callbacks and the progress bar then run 20 times a second
MOST_STEPS = 64  # in a call; more of them save nothing that can be measured


@dataclass
class Calls:
    """The lengths of the calls of one train function.

    Attributes:
        steps_per_call: How many steps a call makes while nothing limits it.
        limit: How many steps the next call may make at most; `None` for no limit.
        steps_made: How many steps the last call made; 0 before the first.
    """

    steps_per_call: int
    limit: int | None = None
    steps_made: int = 0

    def begin(self) -> int:
        """Returns how many steps the call that begins may make, at least 1. A limit holds for one call."""
        steps = self.steps_per_call if self.limit is None else min(self.steps_per_call, self.limit)
        # Before the call, so that a call that fails uses up its limit.
        self.limit = None
        return max(1, steps)

    def limit_next(self, steps: int) -> None:
        """Lets the next call make at most `steps` steps; the smallest of several limits holds."""
        self.limit = steps if self.limit is None else min(steps, self.limit)


def calls_of(model: Any) -> Calls | None:
    """Returns the lengths of the calls of a model's train function; `None` for Keras' own."""
    calls = getattr(getattr(model, "train_function", None), "calls", None)
    return calls if isinstance(calls, Calls) else None


def steps_done(model: Any, *, first: int, last: int) -> int:
    """Returns how many steps of the epoch are done after a call of the train function.

    Args:
        model: The model that `fit` trains.
        first: The step with which the call began, from 0: the `batch` of `on_train_batch_begin`.
        last: The last step that the call could have made: the `batch` of `on_train_batch_end`. Keras passes the end of
            the planned call, also where the call ended before it.
    """
    calls = calls_of(model)
    # A call is shorter than planned where the data or a phase ended in it, or its loss was not finite.
    return first + calls.steps_made if calls and calls.steps_made else last + 1


def limit_next_call(model: Any, steps: int) -> None:
    """Lets the next call of the train function make at most `steps` steps.

    Keras' own function cannot be limited. There `divide_evenly` makes calls end where epochs and phases end.
    """
    if calls := calls_of(model):
        calls.limit_next(steps)


def skip_steps(model: Any, count: int, *, read: bool, restore: Callable[[], None]) -> None:
    """Lets the next calls of the train function pass over the first steps of an epoch, which were made before.

    The callbacks see these steps pass, so what they count in an epoch is as if they had been made here.

    Args:
        model: The model that `fit` trains.
        count: How many steps, >= 1.
        read: Whether their batches are read from the data, which otherwise begin behind them.
        restore: Gives the built metrics what these steps have left in them.
    """
    model.train_function = _SkippedSteps(model, count, read, restore)


def is_skipping(model: Any) -> bool:
    """Returns whether the next step is one that `skip_steps` passes over."""
    return isinstance(model.train_function, _SkippedSteps)


class _SkippedSteps:
    """A train function that makes no step until enough were asked for, and then gives way to the one before."""

    def __init__(self, model: Any, count: int, read: bool, restore: Callable[[], None]):
        self.calls = calls_of(model)  # the limits of a call hold for these, too
        self._model, self._function, self._left, self._read = model, model.train_function, count, read
        self._restore = restore
        self._logs: dict[str, Any] = {}

    def __call__(self, iterator: Any) -> dict[str, Any]:
        if not self._logs:
            # Keras makes the variables of the metrics while it traces its first step, which would be too late.
            spec = tf.nest.map_structure(without_optional, iterator.element_spec)
            keras_private.build_for_training(self._model, spec)
            self._restore()
            self._logs = self._model.get_metrics_result()
        planned = self.calls.begin() if self.calls else self._model.steps_per_execution
        skipped = min(planned, self._left)
        for _ in range(skipped if self._read else 0):
            next(iterator)
        self._left -= skipped
        if not self._left:
            self._model.train_function = self._function
        if skipped == planned:
            if self.calls:
                self.calls.steps_made = skipped
            return dict(self._logs)
        if self.calls is None:
            raise TrainingError(
                "Keras' own loop makes whole calls of `steps_per_execution` steps. Received a checkpoint in the middle "
                f"of a call of {planned} steps. Compile the model with the `steps_per_execution` of the training that "
                "wrote it, or with 1."
            )
        self.calls.limit_next(planned - skipped)
        logs = self._function(iterator)
        self.calls.steps_made += skipped
        return logs


def check_calls(model: Any, steps_per_epoch: int | None) -> None:
    """Checks that calls end where an epoch ends, so that an epoch begins with a certain batch.

    Raises:
        TrainingError: They do not.
    """
    if steps_per_epoch and calls_of(model) is None and steps_per_epoch % model.steps_per_execution:
        raise TrainingError(
            f"An epoch must end where a call of the train function ends. Received {steps_per_epoch} steps in an epoch "
            f"and `steps_per_execution={model.steps_per_execution}`, of which Keras' own loop makes whole calls. Take "
            "a number that divides the steps, or add `finetune.FastLoop()` to the callbacks, whose calls end with the "
            "epoch."
        )


def without_optional(spec: Any) -> Any:
    """Returns the spec of a part of a batch; `None` for a part that is missing."""
    return None if isinstance(spec, tf.OptionalSpec) else spec


def divide_evenly(model: Any, *lengths: int) -> None:
    """Lets Keras' own train function make only as many steps a call as divide all lengths.

    Keras makes whole calls: with 4 steps a call, an epoch of 10 steps has 12. Nothing changes for a model whose steps
    the fast loop makes.

    Args:
        model: A compiled model.
        lengths: Steps of an epoch, and of each phase that is given in steps; 0 counts for nothing.
    """
    if reason_against(model):
        model.steps_per_execution = gcd(model.steps_per_execution, *lengths)


def share_calls(
    model: Any, batches: tf.data.Dataset, steps_per_epoch: int, *, divides: int | None = None
) -> list[keras.callbacks.Callback]:
    """Lets the next `fit` make as many steps a call as last about `CALL_SECONDS`.

    Args:
        model: A compiled model, one step a call.
        batches: What it will be trained on; at least two batches are read.
        steps_per_epoch: Steps of an epoch.
        divides: Steps after each of which a call is to end, >= 1: the number of steps a call then divides it.

    Returns:
        Callbacks for that `fit`; none for Keras' own function, which gains nothing.
    """
    calls = calls_of(model)
    if calls is None:
        return []
    # Keras divides the epoch into calls when `fit` begins, before any callback runs, so the number is set now. The
    # callback takes it back as soon as training begins: `evaluate` between two epochs is compiled for one step a call.
    steps = _measured_steps(model, calls, batches, steps_per_epoch)
    if workers := training_workers():
        steps = workers.agree(steps, "how many steps share a call")
    if divides:
        steps = max(n for n in range(1, steps + 1) if divides % n == 0)
    calls.steps_per_call = model.steps_per_execution = steps
    return [_OneStepToEvaluate()]


class _OneStepToEvaluate(keras.callbacks.Callback):
    """Sets the number back to 1 once `fit` has read it."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        model.steps_per_execution = 1


def _measured_steps(model: Any, calls: Calls, batches: tf.data.Dataset, steps_per_epoch: int) -> int:
    """Times one step, without a trace in the model, and returns how many of them make a call of `CALL_SECONDS`."""
    if steps_per_epoch < 2:
        return 1
    # A fresh iterator: the batches read here come again in `fit`, in the same order.
    iterator = iter(batches)
    with no_trace(model):
        calls.limit_next(1)
        model.train_function(iterator)  # compiles
        calls.limit_next(1)
        # The second step, since the first includes the tracing and compiling of the function.
        begin = time.perf_counter()
        model.train_function(iterator)
        seconds = time.perf_counter() - begin
    return max(1, min(steps_per_epoch, MOST_STEPS, round(CALL_SECONDS / seconds)))


@contextmanager
def calls_restored(model: Any) -> Iterator[None]:
    """Puts the model's own number of steps per call back afterwards, whatever the block has set."""
    # `compile` sets the number; a later `fit` or `evaluate` of the user's reads it again.
    before = model.steps_per_execution
    try:
        yield
    finally:
        model.steps_per_execution = before
