"""The door of the fast loop: which function trains a model in `fit`, and the callback that installs it.

A reader of `finetune.training.run_fit` or of the phases can take `train_function` for Keras' own
`make_train_function`: the results are the same, bit for bit. What is fast about it is in `compiled_steps.py`, how long
a call is in `steps_per_call.py`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from finetune import keras_private
from finetune.distribution.strategy import is_adopted
from finetune.distribution.workers import training_workers
from finetune.errors import TrainingError, quote
from finetune.kernels.native_kernels import NativeLayers, traced_natively, with_kernels
from finetune.training.fast.compiled_steps import FastFunction
from finetune.training.fast.fallback_reasons import reason_against
from finetune.training.fast.steps_per_call import limit_next_call


def train_function(model: Any, forward: Callable[..., Any] | None = None) -> Callable[[Any], Any]:
    """Makes the function that `model.fit` calls to train: a fast one where the model allows it, else Keras' own.

    Args:
        model: A compiled and built model.
        forward: What is called, as `forward(x, training=True)`, in place of the model; see `takes_forward`.

    Raises:
        TrainingError: A model that keeps Keras' own loop is to be trained by several workers or replicas, or with
            `forward`.
    """
    why = reason_against(model)
    if forward is not None or why is None:
        return FastFunction(model, forward)
    if training_workers() or is_adopted(model):
        raise _not_together(model, why)
    # Keras keeps the function of an earlier state of the model unless it is forced to make it anew.
    model.make_train_function(force=True)
    return model.train_function


def _not_together(model: Any, why: str) -> TrainingError:
    return TrainingError(
        "Several workers or replicas sum the gradients of each step in the fast loop, which cannot train "
        f"`{model.name}`: {why}. Train in a single process on a single device, or change that."
    )


def loop_of_replicas(model: Any) -> list[keras.callbacks.Callback]:
    """Returns what a `fit` for a measurement needs beside Keras' own steps: nothing, unless several replicas train."""
    return [FastLoop()] if is_adopted(model) else []


def takes_forward(model: Any) -> bool:
    """Whether the model's train function can be made anew with another forward pass."""
    return isinstance(model.train_function, FastFunction)


def why_not_fast(model: Any) -> str | None:
    """Returns why a model that was trained kept Keras' own loop; `None` if it did not."""
    function = model.train_function
    return function.reason if isinstance(function, FastFunction) else reason_against(model)


class FastLoop(keras.callbacks.Callback):
    """Lets `model.fit` train in less time, with the same results bit for bit.

    `model.compile(steps_per_execution=16)` lets 16 steps share a call; the callbacks then run every 16 steps. A model
    that needs Keras' own loop keeps it. On a dataset that repeats, an epoch has exactly `steps_per_epoch` steps, where
    Keras' own loop makes whole calls. A `fit` after `trainable` was changed without a new `compile` warns.

    With `kernels="native"`, layers that TensorFlow has a single kernel for go through it, in training and where `fit`
    validates: the same mathematics in less time, but other rounding than that of Keras.

    Args:
        kernels: `exact` or `native`.

    Attributes:
        reason: Why the model keeps Keras' own loop; `None` if it does not.
        native: How many layers ran a native kernel in training, by the name of their class.

    Raises:
        TrainingError: `kernels` is neither.

    Examples:
        >>> import tensorflow as tf
        >>> from finetune import GroupedOptimizer
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(GroupedOptimizer([(keras.optimizers.Adam(1e-3), model)]), "mse", steps_per_execution=4)
        >>> history = model.fit(tf.ones((32, 4)), tf.ones((32, 2)), batch_size=4, verbose=0, callbacks=[FastLoop()])
    """

    reason: str | None = None

    def __init__(self, kernels: str = "exact"):
        super().__init__()
        with_kernels(kernels)  # checks the name
        self.kernels = kernels
        self.native: dict[str, int] = {}
        self._of_keras = NativeLayers()  # those that ran a kernel in Keras' own steps
        self._evaluates: tuple[Any, Any] | None = None  # the test function, behind what it depends on

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        kept = vars(model).get("_finetune_function")
        if model.train_function is kept:
            model.make_train_function(force=True)  # ours was left in the model by an error or Ctrl-C
        self._before = model.train_function
        self.reason = reason_against(model)
        if self.reason and is_adopted(model):
            raise _not_together(model, self.reason)
        # A phase installs its function before `fit`, which then stays.
        if self.reason is None and not isinstance(self._before, FastFunction):
            if kept is not None and (changed := kept.changed_since(model)):
                warnings.warn(
                    f"`trainable` was changed after `compile` for {quote(changed)}. Keras' own loop ignores that until "
                    "`compile` is called again; the fast loop trains what is trainable now. Call `model.compile`.",
                    stacklevel=2,
                )
            if kept is None or not kept.fits(model, self.kernels):
                kept = FastFunction(model, kernels=self.kernels)
            kept.calls.steps_per_call = model.steps_per_execution
            # `__dict__` and not an attribute: Keras would track the function and save its variables with the model.
            model.train_function = model.__dict__["_finetune_function"] = kept
        elif self.reason and self.kernels == "native":
            model.make_train_function(force=True)
            model.train_function = traced_natively(model.train_function, self._of_keras)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if steps := (self.params or {}).get("steps"):
            limit_next_call(self.model, steps - batch)  # the next call ends with the epoch

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if isinstance(model.train_function, FastFunction):
            self.reason = model.train_function.reason
            self.native = model.train_function.native.counts(model)
            # A later `fit` without this callback then runs Keras' own loop, as if nothing had been.
            model.train_function = self._before
        elif self.reason and self.kernels == "native":
            self.native = self._of_keras.counts(model)
            model.train_function = self._before

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.kernels == "native":
            model: Any = self.model
            self._test_before = model.test_function
            key = model, keras_private.compiled_loss(model), model.steps_per_execution
            if self._evaluates is None or self._evaluates[0] != key:
                model.make_test_function(force=True)
                self._evaluates = key, traced_natively(model.test_function, NativeLayers())
            model.test_function = self._evaluates[1]

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.kernels == "native":
            model: Any = self.model
            model.test_function = self._test_before
