"""A measured step: the norms of its gradients and updates per layer group, around the ordinary train function.

The ordinary function makes every step, the measured ones too, so its graph and the bits of the weights are the same
with and without a measurement. A measured step is, in this order:

1. one batch is read from the iterator;
2. a second compiled function runs a forward and a backward pass over it and returns the loss, the norms of the
   gradients, the rates and the weights; all that a forward pass writes is put back;
3. the ordinary function makes its step on this batch, which it gets through an iterator of the same type;
4. a third function compares the weights with those of 2 and with those at the start.

So the random numbers of 2 are those of 3, and the gradients are those of the step itself, before they are clipped. It
costs about a second step.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.step_on_replicas import WHOLE_BATCH, PartOfBatch, WholeBatch, run_on_replicas
from finetune.distribution.strategy import is_adopted, replicas_of, scope_of, strategy_of
from finetune.distribution.workers import training_workers
from finetune.errors import reason
from finetune.groups.selectors import LayerGroup
from finetune.kernels.native_kernels import kernels_of, with_kernels
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.compiled_steps import FastFunction
from finetune.training.fast.steps_per_call import calls_of, is_skipping, without_optional
from finetune.training.fast.steps_together import StepTogether
from finetune.training.fit_data import without_optionals
from finetune.training.gradient_norms import global_norm, loss_of_batch
from finetune.training.snapshot import holder
from finetune.training.step import loss_and_gradients
from finetune.variables import copies_of, tf_variable


@dataclass(frozen=True)
class StepNorms:
    """What was measured in a step. A value that cannot be measured is NaN; groups that are frozen are left out.

    Attributes:
        step: The step of the epoch, from 1.
        loss: Of its batch, before the update.
        learning_rate: The rate that the step used, by group.
        gradient_norm: Norm of the gradients of a group, not clipped and of this batch alone.
        update_ratio: Norm of what the step added to the weights of a group, relative to the norm of the weights.
        drift: Norm of what training has added since the start, relative to the norm of the weights at the start.
    """

    step: int
    loss: float
    learning_rate: Mapping[str, float]
    gradient_norm: Mapping[str, float]
    update_ratio: Mapping[str, float]
    drift: Mapping[str, float]


class StepMeasurer:
    """The two compiled functions of a measured step, for one train function.

    Args:
        model: A compiled model with a built optimizer, frozen as it is trained now.
        groups: Its layer groups.
        start: The values of the groups' weights at the start, by the `id` of the variable.
        function: The model's train function.
    """

    def __init__(
        self, model: Any, groups: Sequence[LayerGroup], start: Mapping[int, tf.Tensor], function: Callable[..., Any]
    ):
        self._model, self.function = model, function
        self._forward = function.forward if isinstance(function, FastFunction) else None
        trained = {id(variable) for variable in model.trainable_variables}
        of_groups = {group.name: [leaf.variable for leaf in group.trainable] for group in groups}
        of_groups = {name: [v for v in variables if id(v) in trained] for name, variables in of_groups.items()}
        self._weights = {name: variables for name, variables in of_groups.items() if variables}
        self._start = {name: [start[id(v)] for v in variables] for name, variables in self._weights.items()}
        self.no_gradients = ""
        # Another `train_step` may compute another loss, and Keras' own is that of a single replica.
        if replicas_of(model) > 1 and not is_adopted(model):
            self.no_gradients = "Keras' own loop trains the model on several replicas"
        if getattr(model.train_step, "__func__", None) is not keras.Model.train_step:
            self.no_gradients = f"`{type(model).__name__}` has its own `train_step`"
        self._handover: _Handover | None = None
        # Traced once each, and not by `tf.function`, which warns where many phases have each their own.
        self._read = tf.function(self._present, autograph=False).get_concrete_function()
        self._compare = tf.function(self._compared, autograph=False).get_concrete_function(self._read()[1], self._start)
        self._passes: dict[Any, Any] = {}  # by the spec of a batch

    def __call__(self, iterator: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Makes one step and returns its logs, and loss, rates and norms as tensors."""
        calls = calls_of(self._model)
        loss, norms = tf.constant(math.nan), tf.fill([len(self._weights)], math.nan)
        if not self.no_gradients and isinstance(iterator, tf.data.Iterator):
            batch, spec = next(iterator), iterator.element_spec
            if self._handover is None or self._handover.spec != spec:
                self._handover = _Handover(spec)
            iterator = self._handover.iterator
            self._handover.put(batch)
            loss, norms = self._gradients(without_optionals(batch), spec) or (loss, norms)
        rates, before = self._read()
        if calls:
            calls.limit_next(1)
        logs = self.function(iterator)
        return logs, (loss, rates, norms, *self._compare(before, self._start))

    def _gradients(self, batch: Any, spec: Any) -> Any:
        """Returns what `_passed` does; `None` where it cannot be traced, as only the ordinary step must be."""
        known = tf.nest.map_structure(without_optional, spec)
        key = str(spec)
        if key not in self._passes:
            try:
                if self._forward is None:  # Keras' step makes the variables of metrics while it is traced
                    with scope_of(self._model):
                        keras_private.build_for_training(self._model, known)
                with with_kernels(kernels_of(self.function)):
                    self._passes[key] = tf.function(self._passed, autograph=False).get_concrete_function(known)
            except Exception as error:  # a layer's own gradient may raise anything; it is told, and training goes on
                self.no_gradients = f"the loss could not be differentiated a second time: {reason(error)}"
                return None
        return self._passes[key](batch)

    def norms(self, step: int, measured: tuple[Any, ...]) -> StepNorms:
        """Returns numbers by group; reading them waits for the step."""
        loss, *columns = (tensor.numpy() for tensor in measured)
        by_group = [dict(zip(self._weights, map(float, column), strict=True)) for column in columns]
        return StepNorms(step, float(loss), *by_group)

    # -- What is compiled ---------------------------------------------------------------------------------------------

    def _passed(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch and the norm of the gradients of each group; leaves no trace."""
        model, generators = self._model, (random.getstate(), np.random.get_state())
        optimizer = model.optimizer
        written = [*model.variables, *model.metrics_variables, *_loss_variables(model), *_keras_seeds()]
        written = {id(part): part for variable in written for part in copies_of(holder(variable))}.values()
        before = [variable.read_value() for variable in written]
        try:
            if replicas_of(model) == 1:
                loss, norms = self._loss_and_norms(batch)
            else:
                loss, norms = run_on_replicas(strategy_of(model), self._loss_and_norms, batch)
        finally:
            # Layers such as `AugMix` draw while they are traced, and must draw the same for the ordinary function.
            random.setstate(generators[0])
            np.random.set_state(generators[1])
        for variable, value in zip(written, before, strict=True):
            variable.assign(value, read_value=False)
        # The scale of a `LossScaleOptimizer`, with which float16 gradients do not vanish.
        scale = tf.cast(optimizer.scale_loss(tf.constant(1.0)), tf.float32)
        return loss, norms / scale

    def _loss_and_norms(self, data: Any, part: WholeBatch | PartOfBatch = WHOLE_BATCH) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch and the norm of the gradients of each group, of the part that is here."""
        model, workers = self._model, training_workers()
        together = StepTogether(workers, model, data) if workers else None
        if together:
            data, part = together.data, together.part
        forward = lambda: (loss_of_batch(model, data, self._forward), None)  # noqa: E731
        with together.forward() if together else nullcontext():
            loss, _, gradients = loss_and_gradients(forward, list(self._weights.values()), optimizer=model.optimizer)
        loss, *sums = part.sums([loss, *(gradient for of_group in gradients for gradient in of_group)])
        remaining = iter(sums)
        norms = [global_norm([next(remaining) for _ in of_group]) for of_group in gradients]
        return tf.cast(loss, tf.float32), tf.stack(norms)

    def _present(self) -> tuple[tf.Tensor, dict[str, list[tf.Tensor]]]:
        """Returns the rate of each group at the present step, and the weights."""
        optimizer: Any = unwrap(self._model.optimizer)
        of_groups = optimizer.group_optimizers if isinstance(optimizer, GroupedOptimizer) else {}
        rates = [tf.convert_to_tensor(of_groups.get(name, optimizer).learning_rate) for name in self._weights]
        weights = {name: [tf_variable(v).read_value() for v in of_group] for name, of_group in self._weights.items()}
        return tf.stack([tf.cast(rate, tf.float32) for rate in rates]), weights

    def _compared(self, before: Any, start: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how far the weights of each group are from those before the step, and from those at the start."""
        now = {name: [tf_variable(v).read_value() for v in of_group] for name, of_group in self._weights.items()}
        return tuple(
            tf.stack([_distance(now[name], other[name]) for name in self._weights]) for other in (before, start)
        )  # pyright: ignore[reportReturnType] - of two


def _distance(now: Sequence[Any], before: Sequence[Any]) -> tf.Tensor:
    now, before = ([tf.cast(tensor, tf.float32) for tensor in tensors] for tensors in (now, before))
    moved, size = global_norm([a - b for a, b in zip(now, before, strict=True)]), global_norm(before)
    # Not a ratio of 0 where all weights were 0, as the biases of a group of biases are: that would be no movement.
    return tf.where(size > 0, moved / size, math.nan)


def _loss_variables(model: Any) -> list[Any]:
    """Returns the variables of the means that a loss of several outputs keeps for each of them."""
    metrics = getattr(keras_private.compiled_loss(model), "metrics", None) or ()
    return [variable for metric in metrics for variable in metric.variables]


def _keras_seeds() -> list[Any]:
    """Returns the state of the seeds that Keras gives to layers without their own."""
    generator = keras_private.seed_generator()
    return [] if generator is None else [generator.state]


class _Handover:
    """An iterator over batches that are handed over, of the type of another iterator: nothing is traced anew for it.

    It is kept, since making an iterator takes longer than a step of a small model.

    Args:
        spec: The `element_spec` of the other iterator.
    """

    def __init__(self, spec: Any):
        self.spec, parts = spec, tf.nest.flatten(spec, expand_composites=True)
        with tf.device("CPU:0"):
            self._queue = tf.queue.FIFOQueue(1, [part.dtype for part in parts])
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        options.autotune.enabled = False
        batches = tf.data.Dataset.range(2**62).map(lambda number: self._queue.dequeue()).with_options(options)
        # The queue knows no shapes, and the other iterator may know that of a row.
        variant = tf.data.experimental.to_variant(batches)
        self.iterator = iter(tf.data.experimental.from_variant(variant, structure=spec))

    def put(self, batch: Any) -> None:
        """Lets the next batch of the iterator be this one."""
        with tf.device("CPU:0"):
            self._queue.enqueue(tf.nest.flatten(batch, expand_composites=True))


class MeasuringCall:
    """A train function for one call, in which some steps are measured. Then the one before is back.

    Args:
        model: The model that `fit` trains.
        first: Steps of the epoch that were made before this call.
        is_due: Says of a step of the epoch, counted from 1, whether it is measured.
        measurer: Returns what measures the steps of a train function.
        note: Gets what was measured.
    """

    def __init__(
        self,
        model: Any,
        first: int,
        is_due: Callable[[int], bool],
        measurer: Callable[[Callable[..., Any]], StepMeasurer],
        note: Callable[[StepNorms], None],
    ):
        self._model, self._first, self._is_due = model, first, is_due
        self._measurer, self._note = measurer, note
        self._function = model.train_function
        self.calls = calls_of(model)  # the limits of a call hold for this one, too

    def __call__(self, iterator: Any) -> dict[str, Any]:
        self._model.train_function = self._function
        planned, done = self.calls.begin() if self.calls else 1, 0
        logs: dict[str, Any] = {}
        while done < planned:
            due = next((n for n in range(done, planned) if self._is_due(self._first + n + 1)), planned)
            try:
                made, logs = self._measure(iterator, due) if due == done else self._make(iterator, due - done)
            except (StopIteration, tf.errors.OutOfRangeError):
                if not done:
                    raise
                break
            short = made < (1 if due == done else due - done)
            done += made
            # As `FastFunction`: a call ends at a loss that is not finite, so that the step can be named.
            if short or (done < planned and not math.isfinite(float(logs.get("loss", 0.0)))):
                break
        if self.calls:
            self.calls.steps_made = done
        return logs

    def _make(self, iterator: Any, steps: int) -> tuple[int, dict[str, Any]]:
        if self.calls:
            self.calls.limit_next(steps)
        logs = self._model.train_function(iterator)
        return (self.calls.steps_made if self.calls else steps), logs

    def _measure(self, iterator: Any, done: int) -> tuple[int, dict[str, Any]]:
        if is_skipping(self._model):  # the step was made, and measured, before the checkpoint
            return self._make(iterator, 1)
        measurer = self._measurer(self._model.train_function)
        logs, measured = measurer(iterator)
        self._note(measurer.norms(self._first + done + 1, measured))
        return 1, logs
