"""The sweep of an LR range test: trains with a rate that rises from step to step, and leaves no trace.

The rate of step `i` of `n` is `start * (end / start) ** (i / (n - 1))`. With several groups one multiplier sweeps them
all: a group whose rate is a tenth of the last group's has a tenth of it at every step.

The optimizers read their rates from variables during a sweep, so one compiled function makes `CHUNK` steps in a call
with another rate at each. Between two calls the losses are looked at, to stop early. Everything that training changes
is copied beforehand and put back afterwards, also after an error or Ctrl-C (`finetune.training.snapshot`). What that
is, the compiled function says: the variables that it reads or writes, whoever holds them.

References:
    Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.3, https://arxiv.org/abs/1506.01186
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from finetune import keras_private
from finetune.distribution.step_on_replicas import moving_variables, run_on_replicas
from finetune.distribution.strategy import replicas_of, scope_of, strategy_of
from finetune.errors import GroupError, TrainingError, did_you_mean, quote
from finetune.optimizers.group_rates import ScaledSchedule, as_float
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fit_data import without_optionals
from finetune.training.lr_range.limits import STOP_FACTOR, check_others, check_range
from finetune.training.lr_range.rules import smooth
from finetune.training.snapshot import no_trace
from finetune.training.step import compile_state
from finetune.training.try_examples import explained

_EARLY_STEPS = (0, 1, 10, 100, 1000, 10000)  # at which a schedule is asked for its highest rate
CHUNK = 10  # steps in a call: early stopping and Ctrl-C wait no longer than that


@dataclass(frozen=True)
class Sweep:
    """The curve of one sweep.

    Attributes:
        groups: Names of the layer groups, in the optimizer's order (usually input to output).
        rates: Learning rate of each group at each step, shape `(steps, groups)`; it ends where the sweep stopped.
        losses: Loss of the batch (mean over the accumulated batches) of each step, shape `(steps,)`; the last may be
            NaN.
        swept: Index of the group whose rate is the x axis: the only swept group, or the last group.
        planned_steps: How many steps the sweep was to have.
        diverged: Whether it stopped early, because the loss rose too high or was not a finite number.
        snapshot_bytes: Memory that the copy of the model's state took.
    """

    groups: tuple[str, ...]
    rates: np.ndarray
    losses: np.ndarray
    swept: int
    planned_steps: int
    diverged: bool
    snapshot_bytes: int

    @property
    def x(self) -> np.ndarray:
        """The rate of the swept group at each step, shape `(steps,)`."""
        return self.rates[:, self.swept]


def sweep_rates(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    groups: Sequence[str | None] = (None,),
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    others: str = "frozen",
    repeats: int = 1,
    stop_factor: float = STOP_FACTOR,
    base_rates: Mapping[str, float] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Sweep]]:
    """Sweeps the learning rate of a compiled model; weights, optimizer and random state are unchanged afterwards.

    Args:
        model: A compiled and built model.
        batches: Batches as for `fit`, one for every step of every sweep (times `gradient_accumulation_steps`).
        groups: What to sweep, one after another. A name sweeps that group alone. `None` sweeps all with one multiplier,
            which keeps the ratios of their rates; `start` and `end` are then those of the last group.
        start: First learning rate, > 0.
        end: Last learning rate, > `start`.
        steps: Steps of a sweep, >= 2, spaced geometrically.
        others: What the other groups do while one group is swept: `frozen` (rate 0), or `constant`: they train at their
            own rates, which hides what the swept group does wherever they alone bring the loss down.
        repeats: Sweeps of each entry, >= 1, each from the same weights and with other batches.
        stop_factor: A sweep stops when its smoothed loss exceeds this many times its best; > 1.
        base_rates: Rates by group from which the ratios are taken; by default the present rates.
        on_step: Called with the number of steps done and of all steps.

    Returns:
        For each entry of `groups` one sweep for each repeat.

    Raises:
        GroupError: A group does not exist, or `start`, `end`, `steps`, `repeats`, `others` or `stop_factor` are not
            possible.
        TrainingError: The batches ran out, or the model's steps fail or return no loss.
    """
    check_range(start, end, steps, repeats, stop_factor)
    check_others(others)
    check_model(model)
    children = _children(model)
    names = tuple(children)
    present = np.array(list((trained_groups(model) | dict(base_rates or {})).values()))
    rising = np.geomspace(start, end, steps)
    plans = []
    for group in groups:
        swept = _index(names, group)
        plans.append((swept, _rates(present, swept, rising, alone=group is not None, others=others)))
    micro_batches = getattr(unwrap(model.optimizer), "gradient_accumulation_steps", None) or 1
    # One iterator for all sweeps, so that repeats see other batches, and the only one: an iterator that is left before
    # its end can spoil a cache in the dataset.
    _build(model, batches.element_spec)
    batch, total = iter(batches), len(plans) * repeats * steps
    sweeps: list[list[Sweep]] = [[] for _ in plans]
    sweeper = _sweeper_of(model, len(children), micro_batches)
    with _rates_from(children.values(), sweeper.rate_variables):
        changing = sweeper.trace(model, batch)
        for number, before in enumerate(range(0, total, steps)):
            swept, rates = plans[number // repeats]

            def on_chunk(done: int, before: int = before) -> None:
                on_step(before + done, total)

            # Each sweep starts from the same weights, slots and random state.
            with no_trace(model, changing) as size:
                losses, diverged = _sweep(sweeper.run, batch, rates, stop_factor, on_chunk)
            sweeps[number // repeats].append(Sweep(names, rates[: len(losses)], losses, swept, steps, diverged, size))
    return sweeps


def trained_groups(model: keras.Model) -> dict[str, float]:
    """Returns the present rate of each group of a compiled model, in its order; of a schedule its highest rate."""
    return {name: _present_rate(child) for name, child in _children(model).items()}


def check_model(model: Any) -> None:
    """Checks that a model can be swept.

    Raises:
        GroupError: It is not compiled.
        TrainingError: XLA compiles its step, and it has several replicas.
    """
    if getattr(model, "optimizer", None) is None:
        raise GroupError(
            f"An LR range test trains with the model's optimizer and loss. `{getattr(model, 'name', model)}` is not "
            "compiled. Call `model.compile` first."
        )
    replicas = replicas_of(model)
    if replicas > 1 and model.jit_compile is True:
        raise TrainingError(
            f"An LR range test does not compile the steps of several replicas by XLA. `{model.name}` was made under a "
            f"strategy of {replicas} replicas and compiled with `jit_compile=True`. Compile it without."
        )


def _children(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    optimizer = unwrap(model.optimizer)
    return dict(optimizer.group_optimizers) if isinstance(optimizer, GroupedOptimizer) else {optimizer.name: optimizer}


def _index(names: Sequence[str], group: str | None) -> int:
    if group is None:
        return len(names) - 1
    if group not in names:
        raise GroupError(
            f"A group to sweep is one of those that are trained: {quote(names)}. Received `{group}`."
            f"{did_you_mean(group, names)}"
        )
    return names.index(group)


def _rates(present: np.ndarray, swept: int, rising: np.ndarray, *, alone: bool, others: str) -> np.ndarray:
    """Returns the rate of every group at every step, shape `(steps, groups)`.

    Args:
        present: Present rate of each group, shape `(groups,)`.
        swept: Index of the group that has the rates `rising`.
        rising: The rates of the sweep, shape `(steps,)`.
        alone: Whether only that group is swept.
        others: `frozen` or `constant`.
    """
    if not alone:
        return (rising[:, None] * present / present[swept]).astype("float32")
    rates = np.tile(present if others == "constant" else np.zeros_like(present), (len(rising), 1))
    # A rate of 0 freezes weights, though moving statistics still follow the batches.
    rates[:, swept] = rising
    return rates.astype("float32")


def _present_rate(child: keras.optimizers.Optimizer) -> float:
    """Returns the child's present rate; of a schedule the highest of its early rates, since a warm-up starts at 0."""
    rate = keras_private.held_rate(child)
    if isinstance(rate, ScaledSchedule) and isinstance(rate.schedule, LearningRateSchedule):
        return max(float(rate.schedule(step)) for step in _EARLY_STEPS) * as_float(rate.multiplier)
    return as_float(rate(0)) if isinstance(rate, LearningRateSchedule) else as_float(child.learning_rate)


def _build(model: keras.Model, spec: Any) -> None:
    """Makes slots, loss and metrics where that is possible without a batch: else the sweep is traced a second time."""
    with scope_of(model):
        if model.built and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    if all(isinstance(part, tf.TensorSpec) and part.shape.rank is not None for part in tf.nest.flatten(spec)):
        with suppress(Exception), scope_of(model):  # what is wrong shows when the step itself is traced
            keras_private.build_for_training(model, spec)


@dataclass(frozen=True)
class _Sweeper:
    """A compiled sweep of a model, kept with the model so that a second test compiles nothing.

    Attributes:
        rate_variables: What each group reads its rate from during a sweep.
        run: Trains one step for each row of rates, and returns the losses of the batches.
        made_for: What of the model it was compiled for.
    """

    rate_variables: tuple[keras.Variable, ...]
    run: Any
    made_for: tuple[Any, ...]

    def trace(self, model: keras.Model, batch: Iterator[Any]) -> list[tf.Variable]:
        """Compiles the sweep, which makes what the first step of `fit` would make, such as metrics and slots.

        Args:
            model: The model.
            batch: The iterator over the batches, of which none is read.

        Returns:
            Every variable that a step reads or writes.

        Raises:
            TrainingError: The step cannot be compiled, or does not return a loss.
        """
        rates = tf.zeros((CHUNK, len(self.rate_variables)))
        rule = f"An LR range test makes the training steps of `{model.name}`, which failed."
        with explained(TrainingError, rule, "The test compiles them; check that `model.fit` takes the same data."):
            concrete = self.run.get_concrete_function(batch, rates, tf.constant(0))
        swept = {id(variable.value) for variable in self.rate_variables}
        return [variable for variable in concrete.graph.variables if id(variable) not in swept]


def _sweeper_of(model: keras.Model, num_groups: int, micro_batches: int) -> _Sweeper:
    made_for = (*compile_state(model), model.jit_compile, micro_batches)
    kept = vars(model).get("_finetune_sweeper")
    if kept is None or kept.made_for != made_for:
        rate_variables = tuple(
            keras.Variable(0.0, dtype="float32", trainable=False, name="swept_learning_rate") for _ in range(num_groups)
        )
        kept = _Sweeper(rate_variables, _compiled_sweep(model, rate_variables, micro_batches), made_for)
        # `__dict__` and not an attribute: Keras would track these variables and save them with the model.
        model.__dict__["_finetune_sweeper"] = kept
    return kept


@contextmanager
def _rates_from(
    children: Iterable[keras.optimizers.Optimizer], rate_variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Makes every child read its rate from a variable during the block."""
    children = list(children)
    before = [keras_private.held_rate(child) for child in children]
    try:
        for child, rate, variable in zip(children, before, rate_variables, strict=True):
            # A variable is replaced by a variable and a schedule by a schedule, because Keras' Adafactor computes
            # another update when its rate is callable.
            if not isinstance(rate, keras.Variable):
                variable = ScaledSchedule(lambda: 1.0, variable, variable)
            keras_private.set_held_rate(child, variable)
        yield
    finally:
        for child, rate in zip(children, before, strict=True):
            keras_private.set_held_rate(child, rate)


def _compiled_sweep(
    model: keras.Model, rate_variables: Sequence[keras.Variable], micro_batches: int
) -> Callable[..., tf.Tensor]:
    """Compiles a function that trains one step for each row of rates and returns the losses of the batches.

    It calls the model's own `train_step`, so that a class with another step is measured as `fit` would train it.
    """
    step = tf.function(model.train_step, jit_compile=True) if model.jit_compile is True else model.train_step
    if replicas_of(model) > 1:
        own_step, strategy, moving = step, strategy_of(model), moving_variables(model)
        step = lambda data: run_on_replicas(strategy, lambda part, _: own_step(part), data, moving=moving)  # noqa: E731

    def loss_of(data: Any) -> tf.Tensor:
        # `train_step` returns the mean loss since the last reset; a reset before every batch makes it the batch's own.
        for metric in model.metrics:
            metric.reset_state()
        logs = step(without_optionals(data))
        if not isinstance(logs, Mapping) or "loss" not in logs:
            received = quote(logs) if isinstance(logs, Mapping) else f"a `{type(logs).__name__}`"
            raise TrainingError(
                "An LR range test reads the `loss` that `train_step` returns in its dictionary. "
                f"`{type(model).__name__}.train_step` returns {received or 'an empty dictionary'}. Return the loss to "
                "be judged as `loss`, too."
            )
        return tf.cast(logs["loss"], tf.float32)

    # Without AutoGraph, as Keras' own train function.
    @tf.function(reduce_retracing=True, autograph=False)
    def run(batch: Iterator[Any], rates: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        def step_at(i: tf.Tensor, losses: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            for group, variable in enumerate(rate_variables):
                variable.assign(rates[i, group])
            total = loss_of(next(batch))
            if micro_batches > 1:
                more = (lambda n, _: n < micro_batches, lambda n, loss: (n + 1, loss + loss_of(next(batch))))
                total = tf.while_loop(*more, (tf.constant(1), total), parallel_iterations=1)[1]
            return i + 1, losses.write(i, total / micro_batches)

        begin = (tf.constant(0), tf.TensorArray(tf.float32, size=count))
        # Steps depend on each other: no iteration may start before the last one has ended.
        return tf.while_loop(lambda i, _: i < count, step_at, begin, parallel_iterations=1)[1].stack()

    return run


def _sweep(
    run: Callable[..., tf.Tensor],
    batch: Iterator[Any],
    rates: np.ndarray,
    stop_factor: float,
    on_chunk: Callable[[int], None],
) -> tuple[np.ndarray, bool]:
    """Trains step by step until the rates end or the loss diverges; returns the losses, and whether it diverged."""
    losses = np.zeros(0, "float32")
    for first in range(0, len(rates), CHUNK):
        try:
            chunk = rates[first : first + CHUNK]
            padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)))  # one shape for all chunks: compiled once
            losses = np.concatenate([losses, run(batch, tf.constant(padded), tf.constant(len(chunk))).numpy()])
        except (tf.errors.OutOfRangeError, StopIteration):
            raise TrainingError(
                f"An LR range test needs a batch for every step. The batches ran out after {first} of {len(rates)} "
                "steps. Pass a dataset that repeats: `dataset.repeat()`."
            ) from None
        on_chunk(len(losses))
        if (stop := _divergence(losses, stop_factor)) is not None:
            return losses[: stop + 1], True
    return losses, False


def _divergence(losses: np.ndarray, stop_factor: float) -> int | None:
    """Returns the first step whose smoothed loss is not finite or exceeds `stop_factor` times the best before it."""
    # `fmin`, which ignores NaN: a single broken loss must not hide the best one.
    smoothed = smooth(losses)
    exceeds = smoothed > stop_factor * np.fmin.accumulate(smoothed)
    exceeds[:CHUNK] = False  # the first batches of an almost perfect model differ that much by chance
    diverged = ~np.isfinite(smoothed) | exceeds
    return int(np.argmax(diverged)) if diverged.any() else None
