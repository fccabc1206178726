"""The compiled function that trains: several steps in one call, during which small weights lie together.

The time of a step of many small layers is the number of its operations times what TensorFlow needs to start one. Two
things reduce it, and change no bit of the result:

1. A call of a compiled function looks up every variable that it uses, a few microseconds each. So several steps share
   one call: a `tf.while_loop` inside the function takes batches from the iterator.
2. During the call, weights that the optimizer updates together (`finetune.optimizers.fused`) lie in one buffer. The
   layers see slices of it, and the update writes it as a whole.

Before and after the call the weights are in the layers' own variables, where checkpoints, callbacks and users read
them. The order inside a call is: copy the weights into the buffers; for each batch forward, backward, update; copy the
buffers back; compute the metrics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.errors import TrainingError
from finetune.optimizers.fused.stacked_variable import Buffers
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.fallback_reasons import reason_against
from finetune.training.fast.steps_per_call import Calls
from finetune.training.step import compile_state, loss_and_gradients


class FastFunction:
    """A `model.train_function` that trains for one call's steps and returns the metrics.

    A call ends at the first step whose loss is not a finite number, so that the step can be named.

    Args:
        model: A compiled and built model for which `reason_against` returns `None`.
        forward: What is called, as `forward(x, training=True)`, in place of the model; it shares the model's weights.

    Attributes:
        calls: How many steps a call makes, if there are as many batches; at first `model.steps_per_execution`.

    Raises:
        TrainingError: The model must keep Keras' own loop.
    """

    def __init__(self, model: Any, forward: Callable[..., Any] | None = None):
        if reason := reason_against(model):
            raise TrainingError(
                "The fast loop repeats Keras' own training step, so it trains models that use that step. It cannot "
                f"train `{model.name}`: {reason}. Call `model.fit` without it."
            )
        self.calls = Calls(model.steps_per_execution)
        self._model, self._forward = model, forward or model
        self._made_for = compile_state(model)
        # In the model's order, in which Keras passes gradients to the optimizer: sums over all of them depend on it.
        self._trained = list(model.trainable_variables)
        optimizer = unwrap(model.optimizer)
        self._buffers = optimizer.buffers(self._trained) if isinstance(optimizer, GroupedOptimizer) else Buffers()
        self._run = self._compiled()

    def fits(self, model: Any) -> bool:
        """Returns whether the model is still compiled and frozen as it was when this function was made."""
        return self._made_for == compile_state(model)

    def __call__(self, iterator: Any) -> dict[str, Any]:
        steps = self.calls.begin()
        try:
            done, logs = self._run(iterator, tf.constant(steps))
        except _NoDenseGradientError as error:
            # Raised while the function is traced, before any batch is read: these weights stay in their variables.
            self._buffers = error.dense
            self._run = self._compiled()
            self.calls.limit_next(steps)
            return self(iterator)
        self.calls.steps_made = int(done)
        if not self.calls.steps_made:
            raise StopIteration  # how Keras' loop learns that the data have ended
        return logs

    def _compiled(self) -> Callable[..., Any]:
        # Without AutoGraph, as Keras' own train function: layers are written for graphs, and converting takes seconds.
        @tf.function(reduce_retracing=True, autograph=False)
        def run(iterator: Any, steps: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
            with self._buffers.filled():
                done = self._steps(iterator, steps)
            return done, self._model.get_metrics_result()

        return run

    def _steps(self, iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        """Makes up to `steps` steps, a scalar tensor, and returns how many it made."""
        optional: Any = tf.experimental.Optional
        no_batch = optional.empty(iterator.element_spec)

        def body(done: tf.Tensor, batch: Any) -> tuple[tf.Tensor, Any]:
            # `tf.data` keeps a missing part of a batch as an optional; the model expects `None`.
            data = tf.nest.map_structure(
                lambda part: None if isinstance(part, tf.experimental.Optional) else part, batch.get_value()
            )
            loss = self._step(data)
            done += 1
            # The last step reads no further batch, which would be lost to the next call.
            continues = tf.logical_and(done < steps, tf.math.is_finite(loss))
            return done, tf.cond(continues, iterator.get_next_as_optional, lambda: no_batch)

        first = iterator.get_next_as_optional()
        has_batch = lambda done, batch: batch.has_value()  # noqa: E731
        # Steps depend on each other: no iteration may start before the last one has ended.
        return tf.while_loop(has_batch, body, (tf.constant(0), first), parallel_iterations=1)[0]

    def _step(self, data: Any) -> Any:
        """Makes one step and returns its loss.

        This is Keras' `train_step`, in its order (forward, loss, loss metric, gradients, update, metrics), except that
        some weights are read from and written to the buffers.
        """
        model = self._model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        slices = self._buffers.slices()
        scope = _SlicesScope([(v, slices[id(v)]) for v in self._trained if id(v) in slices])
        options = {"training": True} if keras_private.takes_training(model) else {}

        def forward() -> tuple[Any, Any]:
            with scope:
                y_pred = self._forward(x, **options)
            # The loss of several outputs makes its metrics when it is first called. Made inside the scope, they could
            # not be used outside of it.
            compiled_loss = keras_private.compiled_loss(model)
            if compiled_loss is not None and not compiled_loss.built:
                compiled_loss.build(y, y_pred)
            with scope:
                loss = keras_private.compute_loss(
                    model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
                )
            rows = tf.shape(next(part for part in tf.nest.flatten(x) if part is not None))[0]
            keras_private.loss_tracker(model).update_state(loss, sample_weight=rows)
            return loss, y_pred

        # Gradients are taken for the slices themselves: the layers never see the variables behind them.
        sources = [slices.get(id(variable), variable) for variable in self._trained]
        loss, y_pred, gradients = loss_and_gradients(
            forward, sources, optimizer=model.optimizer, watched=list(slices.values())
        )
        self._check_dense(gradients)
        # The optimizer writes the buffers, or the variables that have none.
        model.optimizer.apply(gradients, self._trained)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return loss

    def _check_dense(self, gradients: Sequence[Any]) -> None:
        """Checks that every weight in a buffer has a dense gradient.

        A layer that reads the `tf.Variable` inside a Keras variable does not see the slice, so its gradient is `None`.
        A layer that looks up rows of its weights has a sparse gradient, which the fused update does not take.
        """
        gradient_of = {id(variable): gradient for variable, gradient in zip(self._trained, gradients, strict=True)}
        dense = self._buffers.with_dense(gradient_of)
        if dense is not self._buffers:
            raise _NoDenseGradientError(dense)


class _NoDenseGradientError(Exception):
    """Stops the tracing of a function: only these buffers can be used."""

    def __init__(self, dense: Buffers):
        super().__init__()
        self.dense = dense


class _SlicesScope(keras.StatelessScope):
    """Lets layers read slices of the buffers in place of some variables.

    A plain `StatelessScope` also holds back every write, such as the moving statistics of BatchNormalization. Here only
    the variables with a slice are replaced; all others are written as usual.
    """

    def __init__(self, mapping: Sequence[tuple[keras.Variable, tf.Tensor]]):
        super().__init__(mapping, collect_losses=True)

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        if id(variable) in self.state_mapping:
            raise TrainingError(
                f"Only the optimizer changes a trained weight. A layer assigns to `{variable.path}` in its `call`. "
                "Create that weight with `trainable=False`, or train without `FastLoop`."
            )
        keras_private.assign_now(variable, value)
