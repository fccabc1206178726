"""How many steps of training share a call of the train function: the one place that decides and that answers.

Keras calls `model.train_function` in a loop and runs the callbacks between two calls. A call of a compiled function
costs a fixed time, so on small models several steps share a call. Four parties have a say in how many:

- the user: `model.compile(steps_per_execution=n)`, which Keras reads when `fit` and `evaluate` begin;
- `share_calls`: it times a step and chooses a number, where a run may choose for itself;
- the end of an epoch, and the end of a phase that is given in steps: they limit the next call (`limit_next_call`);
- a loss that is not a finite number: it ends the call early.

Only our train function (`finetune.training.fast.compiled_steps.FastFunction`) has a `Calls`, which holds these numbers.
Keras' own function always makes `model.steps_per_execution` steps, so the functions below do nothing to it, except for
`divide_evenly`, which is for it alone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

import keras
import tensorflow as tf

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


def _calls_of(model: Any) -> Calls | None:
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
    calls = _calls_of(model)
    # A call is shorter than planned where the data or a phase ended in it, or its loss was not finite.
    return first + calls.steps_made if calls and calls.steps_made else last + 1


def limit_next_call(model: Any, steps: int) -> None:
    """Lets the next call of the train function make at most `steps` steps.

    Keras' own function cannot be limited. There `divide_evenly` makes calls end where epochs and phases end.
    """
    if calls := _calls_of(model):
        calls.limit_next(steps)


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


def share_calls(model: Any, batches: tf.data.Dataset, steps_per_epoch: int) -> list[keras.callbacks.Callback]:
    """Lets the next `fit` make as many steps a call as last about `CALL_SECONDS`.

    Args:
        model: A compiled model, one step a call.
        batches: What it will be trained on; at least two batches are read.
        steps_per_epoch: Steps of an epoch.

    Returns:
        Callbacks for that `fit`; none for Keras' own function, which gains nothing.
    """
    calls = _calls_of(model)
    if calls is None:
        return []
    # Keras divides the epoch into calls when `fit` begins, before any callback runs, so the number is set now. The
    # callback takes it back as soon as training begins: `evaluate` between two epochs is compiled for one step a call.
    calls.steps_per_call = model.steps_per_execution = _measured_steps(model, calls, batches, steps_per_epoch)
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
