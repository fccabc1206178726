"""The compiled function that trains: several steps in one call, during which small weights lie together.

The time of a step of many small layers is the number of its operations times what TensorFlow needs to start one. Two
things reduce it, and change no bit of the result:

1. A call of a compiled function looks up every variable that it uses, a few microseconds each. So several steps share
   one call: a `tf.while_loop` inside the function takes batches from the iterator.
2. During the call, weights that the optimizer updates together (`finetune.optimizers.fused`) lie in one buffer. The
   layers see slices of it (`moved_weights.py`), and the update writes it as a whole.

Before and after the call the weights are in the layers' own variables, where checkpoints, callbacks and users read
them. The order inside a call is: copy the weights into the buffers; for each batch forward, backward, update; copy the
buffers back; compute the metrics.

Whether a model can be trained in this way shows when the function is traced, before a batch is read. So what cannot is
left out then: first the buffers of single weights, then all of them, then the whole function, in favour of Keras' own.
"""

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.step_on_replicas import (
    WHOLE_BATCH,
    PartOfBatch,
    WholeBatch,
    moving_variables,
    run_on_replicas,
)
from finetune.distribution.strategy import replicas_of, scope_of, strategy_of
from finetune.distribution.workers import training_workers
from finetune.errors import TrainingError, reason
from finetune.kernels.native_kernels import NativeLayers, active_kernels, traced_natively, with_kernels
from finetune.optimizers.finite_gradients import FiniteGradients
from finetune.optimizers.fused.stacked_variable import Buffers
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.fallback_reasons import reason_against
from finetune.training.fast.moved_weights import captured, in_custom_gradients, shown, without_dense_gradient
from finetune.training.fast.steps_per_call import Calls, calls_restored, without_optional
from finetune.training.fast.steps_together import MetricsBuiltError, StepTogether, metrics_together
from finetune.training.fit_data import without_optionals
from finetune.training.step import apply_sums, compile_state, loss_and_gradients


class FastFunction:
    """A `model.train_function` that trains for one call's steps and returns the metrics.

    A call ends at the first step whose loss is not a finite number, so that the step can be named.

    Args:
        model: A compiled and built model for which `reason_against` returns `None`.
        forward: What is called, as `forward(x, training=True)`, in place of the model; it shares the model's weights.
        kernels: How layers compute: `exact` or `native`; in a block of native kernels they are native in any case.

    Attributes:
        kernels: How they do.
        native: The layers that run a native kernel.
        calls: How many steps a call makes, if there are as many batches; at first `model.steps_per_execution`.
        reason: Why the steps are Keras' own after all, which shows in the first call; otherwise `None`.

    Raises:
        TrainingError: The model must keep Keras' own loop.
    """

    def __init__(self, model: Any, forward: Callable[..., Any] | None = None, *, kernels: str = "exact"):
        if why := reason_against(model):
            raise TrainingError(
                "The fast loop repeats Keras' own training step, so it trains models that use that step. It cannot "
                f"train `{model.name}`: {why}. Call `model.fit` without it."
            )
        self.calls = Calls(model.steps_per_execution)
        self.reason: str | None = None
        self._model, self._forward, self.kernels = model, forward, _in_block(kernels)
        self.native = NativeLayers()
        self._made_for = compile_state(model)
        # In the model's order, in which Keras passes gradients to the optimizer: sums over all of them depend on it.
        self._trained = list(model.trainable_variables)
        optimizer = unwrap(model.optimizer)
        self._buffers = optimizer.buffers(self._trained) if isinstance(optimizer, GroupedOptimizer) else Buffers()
        self._before_trace: tuple[Any, Any] | None = None  # random state of Python and NumPy, while tracing
        self._run: Callable[..., Any] = self._compiled()

    @property
    def forward(self) -> Callable[..., Any] | None:
        """What is called in place of the model; `None` where it is the model."""
        return self._forward

    def fits(self, model: Any, kernels: str = "exact") -> bool:
        """Returns whether the model is compiled and frozen as when this function was made, which had these kernels."""
        return self.kernels == _in_block(kernels) and self._made_for == compile_state(model)

    def changed_since(self, model: Any) -> list[str]:
        """Returns the paths of weights whose `trainable` was changed since, if the model was not compiled again."""
        before, now = self._made_for, compile_state(model)
        if before[0] is not now[0] or before[1] is not now[1]:
            return []
        changed = {*before[3:]} ^ {*now[3:]}  # `id`s of what is trained
        return [weight.path for weight in model.weights if id(weight) in changed]

    @property
    def moved(self) -> list[keras.Variable]:
        """The weights that lie in buffers during a call; which of them can shows in the first call."""
        return self._buffers.variables

    def __call__(self, iterator: Any) -> dict[str, Any]:
        steps = self.calls.begin()
        if replicas_of(self._model) > 1:
            self._make_variables(iterator.element_spec)
        done, logs = self._traced_run(iterator, steps)
        self.calls.steps_made = int(done)
        if not self.calls.steps_made:
            raise StopIteration  # how Keras' loop learns that the data have ended
        return logs

    def _make_variables(self, spec: Any) -> None:
        """Makes slots and metrics on all replicas, before a step is traced that would make them on the first alone."""
        with scope_of(self._model):
            self._model.optimizer.build(self._trained)
            keras_private.build_for_training(self._model, tf.nest.map_structure(without_optional, spec))

    def _traced_run(self, iterator: Any, steps: int) -> tuple[Any, dict[str, Any]]:
        """Runs the function; what cannot be traced is left out, until it can."""
        while True:
            try:
                return self._run(iterator, tf.constant(steps))
            except Exception as error:
                if self._before_trace is None:
                    raise  # by a step that ran: batches were read
                if isinstance(error, _KeptVariablesError):
                    self._buffers = self._buffers.without(error.variables)
                elif isinstance(error, MetricsBuiltError):
                    pass  # the next trace finds their variables
                elif len(self._buffers):
                    self._buffers = Buffers()
                elif self._forward is None and not training_workers() and replicas_of(self._model) == 1:
                    self.reason = f"its step cannot be compiled with others in one call: {reason(error)}"
                else:
                    raise
                self._run = self._keras_own() if self.reason else self._compiled()
                self._restore_random_state()

    def _restore_random_state(self) -> None:
        """Lets the next trace draw the numbers of the last: some layers, such as `AugMix`, draw while traced."""
        assert self._before_trace
        python, numpy = self._before_trace
        random.setstate(python)
        np.random.set_state(numpy)
        self._before_trace = None

    def _compiled(self) -> Callable[..., Any]:
        # Without AutoGraph, as Keras' own train function: layers are written for graphs, and converting takes seconds.
        @tf.function(reduce_retracing=True, autograph=False)
        def run(iterator: Any, steps: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
            self._before_trace = random.getstate(), np.random.get_state()
            with with_kernels(self.kernels) as self.native, self._buffers.filled(), metrics_together(self._model):
                if self._guard and training_workers():
                    self._guard.take_copies()  # the means of losses were added up behind the call before
                done = self._steps(iterator, steps)
            logs = self._model.get_metrics_result()
            self._before_trace = None
            return done, logs

        return run

    def _keras_own(self) -> Callable[..., Any]:
        """Returns a function like that of `_compiled` which makes Keras' own steps, one by one."""
        model = self._model
        ours = model.train_function
        model.make_train_function(force=True)
        step, model.train_function = model.train_function, ours
        if self.kernels == "native":
            step = traced_natively(step, self.native)

        def run(iterator: Any, steps: tf.Tensor) -> tuple[int, dict[str, Any]]:
            done, logs = 0, {}
            with calls_restored(model):
                model.steps_per_execution = 1
                while done < steps and np.isfinite(logs.get("loss", 0.0)):
                    try:
                        logs = step(iterator)
                    except (StopIteration, tf.errors.OutOfRangeError):
                        break
                    done += 1
            return done, logs

        return run

    def _steps(self, iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        """Makes up to `steps` steps, a scalar tensor, and returns how many it made."""
        optional: Any = tf.experimental.Optional
        no_batch = optional.empty(iterator.element_spec)

        def body(done: tf.Tensor, batch: Any) -> tuple[tf.Tensor, Any]:
            # `tf.data` keeps a missing part of a batch as an optional; the model expects `None`.
            loss = step(without_optionals(batch.get_value()))
            done += 1
            # The last step reads no further batch, which would be lost to the next call.
            continues = tf.logical_and(done < steps, tf.math.is_finite(loss))
            return done, tf.cond(continues, iterator.get_next_as_optional, lambda: no_batch)

        # A function of its own, as in Keras' loop: TensorFlow optimizes the graphs of functions and loops differently,
        # and would add up the gradients of a tensor that is used three times in another order.
        step = tf.function(self._step if replicas_of(self._model) == 1 else self._step_on_replicas, autograph=False)
        first = iterator.get_next_as_optional()
        has_batch = lambda done, batch: batch.has_value()  # noqa: E731
        # Steps depend on each other: no iteration may start before the last one has ended.
        return tf.while_loop(has_batch, body, (tf.constant(0), first), parallel_iterations=1)[0]

    @property
    def _guard(self) -> FiniteGradients | None:
        """What leaves out steps whose gradients are not finite, if anything does."""
        return getattr(unwrap(self._model.optimizer), "finite_gradients", None)

    def _step_on_replicas(self, data: Any) -> Any:
        """Makes one step on all replicas and returns its loss."""
        loss = run_on_replicas(strategy_of(self._model), self._step, data, moving=moving_variables(self._model))
        if self._guard:
            self._guard.take_copies()  # of statistics that are now the mean over the replicas
        return loss

    def _step(self, data: Any, part: WholeBatch | PartOfBatch = WHOLE_BATCH) -> Any:
        """Makes one step and returns its loss.

        This is Keras' `train_step`, in its order (forward, loss, loss metric, gradients, update, metrics), except that
        some weights are read from and written to the buffers.
        """
        model, workers = self._model, training_workers()
        together = StepTogether(workers, model, data) if workers else None
        if together:
            data, part = together.data, together.part
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        slices = self._buffers.slices()
        options = {"training": True} if keras_private.takes_training(model) else {}

        def forward() -> tuple[Any, Any]:
            with shown(slices):
                y_pred = (self._forward or model)(x, **options)
                loss = keras_private.compute_loss(
                    model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                )
            if together:  # the loss of the batch comes with the gradients
                return loss, (loss, y_pred)
            of_batch = part.total(loss)
            keras_private.loss_tracker(model).update_state(of_batch, sample_weight=part.rows(x))
            return loss, (of_batch, y_pred)

        # Gradients are taken for the slices themselves: the layers never see the variables behind them.
        slice_of = {id(variable): tensor for variable, tensor in slices}
        sources = [slice_of.get(id(variable), variable) for variable in self._trained]
        with together.forward() if together else nullcontext():
            _, (loss, y_pred), gradients = loss_and_gradients(forward, sources, optimizer=model.optimizer)
        gradient_of = {id(variable): gradient for variable, gradient in zip(self._trained, gradients, strict=True)}
        moved = [variable for variable, _ in slices]
        missing = without_dense_gradient(moved, [gradient_of[id(variable)] for variable in moved])
        _keep([*missing, *in_custom_gradients(slices)])
        if together:
            loss, gradients = together.sum(loss, gradients)
            keras_private.loss_tracker(model).update_state(loss, sample_weight=part.rows(x))
        # The optimizer writes the buffers, or the variables that have none.
        apply_sums(model.optimizer, gradients, self._trained, WHOLE_BATCH if together else part)
        x, y, y_pred, sample_weight = part.counted((x, y, y_pred, sample_weight))
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        # Last, when everything that a step uses is in its graph.
        _keep(captured(moved))
        return self._guard.loss_of_step(loss) if self._guard else loss


def _in_block(kernels: str) -> str:
    return "native" if active_kernels() == "native" else kernels


class _KeptVariablesError(Exception):
    """Stops the tracing of a function: these weights must stay in their variables."""

    def __init__(self, variables: list[keras.Variable]):
        super().__init__()
        self.variables = variables


def _keep(variables: list[keras.Variable]) -> None:
    if variables:
        raise _KeptVariablesError(variables)
