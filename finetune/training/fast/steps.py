"""The inside of `fit`: several steps in one call, during which small weights lie together.

A step of many small layers takes as long as its operations are many. Two things save some, and change no bit of the
result: a call of a compiled function looks up every variable once, so several steps share one call; and while they
last, the weights that `finetune.optimizers.fused.stacks` updates together lie in one variable, of which the layers see
their parts. Before the call and after it they are in the layers' own variables, where everybody looks for them.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.optimizers.fused.stacks import StackedVariable
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap import unwrap
from finetune.training.snapshot import no_trace

_CALL_SECONDS, _MOST_STEPS = 0.05, 64  # as often as eyes and callbacks need


class FastLoop(keras.callbacks.Callback):
    """Lets `model.fit` train with a `FastFunction`: as before, bit for bit, in less time.

    `model.compile(steps_per_execution=16)` lets sixteen steps share a call; the callbacks are then called every
    sixteen steps. Where the model needs a loop of its own, nothing changes. On a dataset that goes on, an epoch has
    just `steps_per_epoch` steps; Keras' own makes whole calls.

    Attributes:
        reason: Why the model keeps its own loop; `None` if it does not.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(GroupedOptimizer([(keras.optimizers.Adam(1e-3), model)]), "mse", steps_per_execution=4)
        >>> history = model.fit(tf.ones((32, 4)), tf.ones((32, 2)), batch_size=4, verbose=0, callbacks=[FastLoop()])
    """

    reason: str | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        kept = vars(model).get("_finetune_function")
        if model.train_function is kept:
            model.make_train_function(force=True)  # ours was left there by an error or Ctrl-C
        self._theirs = model.train_function
        self.reason = reason_against(model)
        if self.reason is None and not isinstance(self._theirs, FastFunction):
            ours = kept if kept is not None and kept.fits(model) else FastFunction(model)
            ours.steps_per_call = model.steps_per_execution
            model.train_function = model.__dict__["_finetune_function"] = ours  # past Keras' tracking

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        function: Any = getattr(self.model, "train_function", None)
        steps = (self.params or {}).get("steps")
        if isinstance(function, FastFunction) and steps:
            function.most_steps = steps - batch

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if isinstance(model.train_function, FastFunction):
            model.train_function = self._theirs


class CallsOf(keras.callbacks.Callback):
    """Lets a `fit` make its calls of several steps while evaluations, compiled for one step a call, go on as they are.

    Keras divides an epoch into calls before it tells any callback, so the number may be taken back then.

    Args:
        model: A compiled model, one step a call, whose `train_function` is a `FastFunction`.
        steps: Steps in a call.
    """

    def __init__(self, model: Any, steps: int):
        super().__init__()
        model.train_function.steps_per_call = model.steps_per_execution = steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        model.steps_per_execution = 1


def reason_against(model: Any) -> str | None:
    """Says why a model's steps cannot be made here; `None` if they can."""
    if not model.built:
        return "it is not built yet"
    own = [name for name in ("train_step", "compute_metrics") if not _is_keras(model, name)]
    if own:
        return f"`{type(model).__name__}` has its own `{own[0]}`"
    if model.run_eagerly:
        return "it runs eagerly"
    if model.jit_compile is True:
        return "XLA compiles its step"
    if model.distribute_strategy.num_replicas_in_sync > 1 or tf.distribute.has_strategy():
        return "it has several replicas"
    return None


def _is_keras(model: Any, name: str) -> bool:
    return getattr(type(model), name) is getattr(keras.Model, name)


class FastFunction:
    """What stands in `model.train_function`: trains some steps and returns the metrics.

    Args:
        model: A compiled and built model for which `reason_against` has none.
        forward: What is called, as `forward(x, training=True)`, in place of the model; it shares the model's weights.

    A call ends at the first step whose loss is no finite number.

    Attributes:
        steps_per_call: How many steps a call has, if there are batches; at first `model.steps_per_execution`.
        most_steps: How many steps the next call may have at most; `None` for no such limit.
        steps_made: How many steps the last call had.

    Raises:
        TrainingError: If the model cannot be trained so.
    """

    def __init__(self, model: Any, forward: Callable[..., Any] | None = None):
        if reason := reason_against(model):
            raise TrainingError(
                f"A fast loop makes the steps of a model itself. It cannot for `{model.name}`: {reason}."
            )
        self.steps_per_call: int = model.steps_per_execution
        self.most_steps: int | None = None
        self.steps_made = 0
        self._model, self._forward = model, forward or model
        self._made_for = _state(model)
        self._trained = list(model.trainable_variables)
        self._buffers = {stacked: _buffer(stacked) for stacked in _stacked_variables(model.optimizer, self._trained)}
        self._run = self._compiled()

    def fits(self, model: Any) -> bool:
        """Whether the model is what it was when this was made."""
        return _same(self._made_for, _state(model))

    def __call__(self, iterator: Any) -> dict[str, Any]:
        steps = self.steps_per_call if self.most_steps is None else max(1, min(self.steps_per_call, self.most_steps))
        self.most_steps = None
        try:
            done, logs = self._run(iterator, tf.constant(steps))
        except _NotReachedError as error:
            self._buffers = {
                stacked: buffer for stacked, buffer in self._buffers.items() if stacked not in error.unreached
            }
            self._run, self.most_steps = self._compiled(), steps
            return self(iterator)
        self.steps_made = int(done)
        if not self.steps_made:
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


def choose_steps_per_call(function: Any, batches: tf.data.Dataset, most: int) -> int:
    """Times two steps that leave no trace, and returns how many make a call of a twentieth of a second.

    Args:
        function: What trains the model; only a `FastFunction` takes several steps at no cost.
        batches: At least two batches.
        most: Steps of an epoch.
    """
    if not isinstance(function, FastFunction) or most < 2:
        return 1
    iterator = iter(batches)
    with no_trace(function._model):
        function.most_steps = 1
        function(iterator)  # compiles
        function.most_steps, begun = 1, time.perf_counter()
        function(iterator)
        seconds = time.perf_counter() - begun
    return max(1, min(most, _MOST_STEPS, round(_CALL_SECONDS / seconds)))


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
