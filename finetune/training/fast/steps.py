"""The inside of `fit`: several steps in one call, during which small weights lie together.

A step of many small layers takes as long as its operations are many. Two things save some, and change no bit of the
result: a call of a compiled function looks up every variable once, so several steps share one call; and while they
last, the weights that `finetune.optimizers.fused.stacks` updates together lie in one variable, of which the layers see
their parts. Before the call and after it they are in the layers' own variables, where everybody looks for them.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.optimizers.fused.stacks import StackedVariable
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap import unwrap
from finetune.training.fast.calls import Calls
from finetune.training.fast.reasons import reason_against


class FastFunction:
    """What stands in `model.train_function`: trains some steps and returns the metrics.

    Args:
        model: A compiled and built model for which `reason_against` has none.
        forward: What is called, as `forward(x, training=True)`, in place of the model; it shares the model's weights.

    A call ends at the first step whose loss is no finite number.

    Attributes:
        calls: How many steps a call makes, if there are as many batches; at first `model.steps_per_execution`.

    Raises:
        TrainingError: If the model cannot be trained so.
    """

    def __init__(self, model: Any, forward: Callable[..., Any] | None = None):
        if reason := reason_against(model):
            raise TrainingError(
                f"A fast loop makes the steps of a model itself. It cannot for `{model.name}`: {reason}."
            )
        self.calls = Calls(model.steps_per_execution)
        self._model, self._forward = model, forward or model
        self._made_for = _state(model)
        self._trained = list(model.trainable_variables)
        self._buffers = {stacked: _buffer(stacked) for stacked in _stacked_variables(model.optimizer, self._trained)}
        self._run = self._compiled()

    def fits(self, model: Any) -> bool:
        """Whether the model is what it was when this was made."""
        return _same(self._made_for, _state(model))

    def __call__(self, iterator: Any) -> dict[str, Any]:
        steps = self.calls.begin()
        try:
            done, logs = self._run(iterator, tf.constant(steps))
        except _NotReachedError as error:
            self._buffers = {
                stacked: buffer for stacked, buffer in self._buffers.items() if stacked not in error.unreached
            }
            self._run = self._compiled()
            self.calls.limit_next(steps)
            return self(iterator)
        self.calls.steps_made = int(done)
        if not self.calls.steps_made:
            raise StopIteration
        return logs

    def _compiled(self) -> Callable[..., Any]:
        @tf.function(reduce_retracing=True, autograph=False)
        def run(iterator: Any, steps: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
            for stacked, buffer in self._buffers.items():
                buffer.assign(stacked.read(), read_value=False)
            with ExitStack() as held:
                for stacked, buffer in self._buffers.items():
                    held.enter_context(stacked.held(buffer))
                done = self._steps(iterator, steps)
            for stacked, buffer in self._buffers.items():
                stacked.write(buffer.read_value())
            return done, self._model.get_metrics_result()

        return run

    def _steps(self, iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        optional: Any = tf.experimental.Optional
        nothing = optional.empty(iterator.element_spec)

        def body(done: tf.Tensor, batch: Any) -> tuple[tf.Tensor, Any]:
            loss = self._step(_without_optionals(batch.get_value()))
            done += 1
            # Not one batch more than wanted: the next call shall have it.
            goes_on = tf.logical_and(done < steps, tf.math.is_finite(loss))
            return done, tf.cond(goes_on, iterator.get_next_as_optional, lambda: nothing)

        first = iterator.get_next_as_optional()
        more = lambda done, batch: batch.has_value()  # noqa: E731
        return tf.while_loop(more, body, (tf.constant(0), first), parallel_iterations=1)[0]

    def _step(self, data: Any) -> Any:
        """Keras' `train_step`, but that some weights are read and written elsewhere; returns the loss."""
        model, optimizer = self._model, self._model.optimizer
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        parts = {
            id(v): part
            for stacked in self._buffers
            for v, part in zip(stacked.variables, tf.unstack(stacked.read()), strict=True)
        }
        sources = [parts.get(id(variable), variable.value) for variable in self._trained]
        mapping = [(v, parts[id(v)]) for v in self._trained if id(v) in parts]
        seen = _SeenAs(mapping)
        with tf.GradientTape() as tape:
            tape.watch(list(parts.values()))
            options = {"training": True} if model._call_has_training_arg else {}
            with seen:
                y_pred = self._forward(x, **options)
            _build_loss(model, y, y_pred)
            with seen:
                loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            scaled = optimizer.scale_loss(loss)
        rows = tf.shape(next(one for one in tf.nest.flatten(x) if one is not None))[0]
        model._loss_tracker.update_state(loss, sample_weight=rows)
        gradients: Any = tape.gradient(scaled, sources)
        self._check_reached(gradients)
        optimizer.apply(gradients, self._trained)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return loss

    def _check_reached(self, gradients: Sequence[Any]) -> None:
        """A layer that looks past `keras.Variable`, or takes rows of its weights, cannot have them lie elsewhere."""
        found = {id(variable): gradient for variable, gradient in zip(self._trained, gradients, strict=True)}
        not_dense = [
            stacked
            for stacked in self._buffers
            if not all(isinstance(found[id(v)], tf.Tensor) for v in stacked.variables)
        ]
        if not_dense:
            raise _NotReachedError(not_dense)


class _NotReachedError(Exception):
    def __init__(self, unreached: Sequence[StackedVariable]):
        super().__init__()
        self.unreached = unreached


class _SeenAs(keras.StatelessScope):
    """Lets layers see other values of some variables; all others are read and written as ever."""

    def __init__(self, mapping: Sequence[tuple[keras.Variable, tf.Tensor]]):
        super().__init__(mapping, collect_losses=True)

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        if id(variable) in self.state_mapping:
            raise TrainingError(f"A weight changes in the update alone. A layer writes `{variable.path}` in its call.")
        variable._direct_assign(value)


def _build_loss(model: Any, y: Any, y_pred: Any) -> None:
    """Makes the means of the losses of several outputs, which nobody can use who is made where variables are seen."""
    loss = model._compile_loss
    if loss is not None and not loss.built:
        loss.build(y, y_pred)


def _stacked_variables(optimizer: Any, trained: Iterable[Any]) -> list[StackedVariable]:
    inner = unwrap(optimizer)
    return inner.stacked_variables(trained) if isinstance(inner, GroupedOptimizer) else []


def _buffer(stacked: StackedVariable) -> tf.Variable:
    return tf.Variable(tf.zeros(stacked.shape, stacked.dtype), trainable=False, name=stacked.name)


def _without_optionals(batch: Any) -> Any:
    """A missing part of a batch, which `tf.data` keeps as an optional, is `None` to the model."""
    return tf.nest.map_structure(lambda one: None if isinstance(one, tf.experimental.Optional) else one, batch)


def _state(model: Any) -> tuple[Any, ...]:
    return (model.optimizer, getattr(model, "_compile_loss", None), *(id(v) for v in model.trainable_variables))


def _same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(a is b or a == b for a, b in zip(some, others, strict=True))
