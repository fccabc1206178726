"""The LR range test: raises the learning rate from step to step, watches the loss, and leaves no trace.

References:
    Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.3, https://arxiv.org/abs/1506.01186
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule
from keras.src.utils import tracking

from finetune.errors import GroupError, TrainingError, did_you_mean, quote
from finetune.optimizers.group_rates import ScaledSchedule
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap import unwrap
from finetune.training.lr_range.rules import smooth
from finetune.training.snapshot import no_trace

_PROBED = (0, 1, 10, 100, 1000, 10000)
_LOWEST, _HIGHEST = 1e-30, 1e30  # whole numbers of float32, with room for the ratios of groups
CHUNK = 10  # steps between two looks at the loss: Ctrl-C and early stopping wait no longer than that


@dataclass(frozen=True)
class Sweep:
    """One raising of the rates.

    Attributes:
        groups: Names of the layer groups, in the optimizer's order (input to output, as people list them).
        rates: Learning rate of each group at each step, shape `(steps, groups)`; cut where the sweep stopped.
        losses: Loss of the batch (of the accumulated batches) of each step, shape `(steps,)`; its last may be NaN.
        swept: Index of the group whose rate is the x axis: the only one swept, or the last one.
        planned_steps: Steps that it would have had.
        diverged: Whether it stopped because the loss rose beyond all measure or was no number.
        snapshot_bytes: Memory that the copy of all that was put back took.
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
        """The rate of the swept group at each step."""
        return self.rates[:, self.swept]


def sweep_rates(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    groups: Sequence[str | None] = (None,),
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    others: str = "rest",
    repeats: int = 1,
    stop_factor: float = 4.0,
    base_rates: Mapping[str, float] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Sweep]]:
    """Sweeps the learning rate of a compiled model; weights, optimizer and random state are as before afterwards.

    Args:
        model: A compiled and built model.
        batches: Batches as for `fit`, one for every step of every sweep (times `gradient_accumulation_steps`).
        groups: What to sweep, one after another. A name sweeps that group alone. `None` sweeps all with one multiplier,
            which keeps the ratios of their rates; `start` and `end` are those of the last group.
        start: First learning rate, > 0.
        end: Last learning rate, > `start`.
        steps: Steps between the two, >= 2, spaced geometrically.
        others: What the other groups do while one is swept: `rest` (rate 0), or `stand` at their own rates, which hides
            what the swept group does wherever they alone bring the loss down.
        repeats: Sweeps one after another, each from the same weights and with other batches.
        stop_factor: A sweep stops when its smoothed loss exceeds this many times its best.
        base_rates: The rate of each group that the ratios are taken from, by name; by default its present one.
        on_step: Told the steps done and the steps in all.

    Returns:
        For each entry of `groups` one sweep for each repeat.

    Raises:
        GroupError: If a group does not exist, or the range is none.
        TrainingError: If the batches run out.
    """
    _check_range(start, end, steps, stop_factor, repeats)
    children = _children(model)
    names = tuple(children)
    own = np.array(list((trained_groups(model) | dict(base_rates or {})).values()))
    raised = np.geomspace(start, end, steps)
    plans = [(_index(names, group), _rates(own, _index(names, group), raised, group, others)) for group in groups]
    micro = getattr(unwrap(model.optimizer), "gradient_accumulation_steps", None) or 1
    _build(model, batches)
    batch, total = iter(batches), len(plans) * repeats * steps
    sweeps: list[list[Sweep]] = [[] for _ in plans]
    sweeper = _sweeper_of(model, len(children), micro)
    run = sweeper.run
    with _read_from(children.values(), sweeper.dials):
        for number, before in enumerate(range(0, total, steps)):
            swept, rates = plans[number // repeats]
            with no_trace(model) as size:
                losses, diverged = _sweep(run, batch, rates, stop_factor, partial(_tell, on_step, before, total))
            sweeps[number // repeats].append(Sweep(names, rates[: len(losses)], losses, swept, steps, diverged, size))
    return sweeps


def trained_groups(model: keras.Model) -> dict[str, float]:
    """Returns the present rate of each group of a compiled model, in its order; of a schedule its highest."""
    return {name: _own_rate(child) for name, child in _children(model).items()}


def _check_range(start: float, end: float, steps: int, stop_factor: float, repeats: int) -> None:
    if not (_LOWEST <= start < end <= _HIGHEST and steps >= 2 and stop_factor > 1 and repeats >= 1):
        raise GroupError(
            "An LR range test raises the rate from `start` > 0 to a higher `end`, both between 1e-30 and 1e30, in at "
            "least 2 `steps`, stops at "
            f"`stop_factor` > 1 times the best loss, and has at least 1 of `repeats`. Received start={start}, "
            f"end={end}, steps={steps}, stop_factor={stop_factor}, repeats={repeats}. The usual range is 1e-7 to 10 "
            "in 100 steps."
        )


def _children(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    optimizer = unwrap(model.optimizer)
    return dict(optimizer.group_optimizers) if isinstance(optimizer, GroupedOptimizer) else {optimizer.name: optimizer}


def _index(names: Sequence[str], group: str | None) -> int:
    if group is None:
        return len(names) - 1
    if group not in names:
        raise GroupError(
            f"A group to sweep is one that is trained. Received `{group}`; there are {quote(names)}."
            f"{did_you_mean(group, names)}"
        )
    return names.index(group)


def _rates(own: np.ndarray, swept: int, raised: np.ndarray, group: str | None, others: str) -> np.ndarray:
    """Returns the rate of every group at every step, shape `(steps, groups)`."""
    if group is None:
        return (raised[:, None] * own / own[swept]).astype("float32")
    rates = np.tile(own if others == "stand" else np.zeros_like(own), (len(raised), 1))
    rates[:, swept] = raised
    return rates.astype("float32")


def _own_rate(child: keras.optimizers.Optimizer) -> float:
    """The child's present rate; with a schedule the highest of its early ones, past a warm-up from 0."""
    rate = child._learning_rate
    if isinstance(rate, ScaledSchedule) and isinstance(rate.schedule, LearningRateSchedule):
        return max(float(rate.schedule(step)) for step in _PROBED) * float(rate.multiplier)
    return float(rate(0)) if isinstance(rate, LearningRateSchedule) else float(child.learning_rate)


def _build(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Makes every variable that training will touch, so that the snapshot is complete."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._symbolic_build(data_batch=next(iter(batches.take(1))))  # metrics too: what is built already stays


@dataclass(frozen=True)
class _Sweeper:
    """A compiled sweep of a model, kept with it so that a second test compiles nothing.

    Attributes:
        dials: The variables that the groups read their rates from meanwhile.
        run: Trains a step for each row of rates and returns the losses of the batches.
        made_for: What of the model it was compiled for.
    """

    dials: tuple[keras.Variable, ...]
    run: Callable[..., tf.Tensor]
    made_for: tuple[Any, ...]


def _sweeper_of(model: keras.Model, num_groups: int, micro: int) -> _Sweeper:
    loss = getattr(model, "_compile_loss", None)  # `compile` makes it anew
    made_for = (model.optimizer, loss, model.jit_compile, micro, [id(weight) for weight in model.trainable_variables])
    kept = vars(model).get("_finetune_sweeper")
    if kept is None or not _same(kept.made_for, made_for):
        dials = tuple(
            keras.Variable(0.0, dtype="float32", trainable=False, name="swept_learning_rate") for _ in range(num_groups)
        )
        kept = _Sweeper(dials, _compiled_sweep(model, dials, micro), made_for)
        model.__dict__["_finetune_sweeper"] = kept  # past Keras' tracking: the dials are no weights of the model
    return kept


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(one is other or (isinstance(one, list | int) and one == other) for one, other in zip(a, b, strict=True))


@contextmanager
def _read_from(children: Iterable[keras.optimizers.Optimizer], dials: Sequence[keras.Variable]) -> Iterator[None]:
    """Lets every child read its rate from a variable of its own meanwhile."""
    children = list(children)
    own = [child._learning_rate for child in children]
    try:
        for child, rate, dial in zip(children, own, dials, strict=True):
            # Adafactor asks whether its rate is a callable, so it stays what it was.
            _hold(child, dial if isinstance(rate, keras.Variable) else ScaledSchedule(lambda: 1.0, dial, dial))
        yield
    finally:
        for child, rate in zip(children, own, strict=True):
            _hold(child, rate)


def _hold(child: keras.optimizers.Optimizer, rate: Any) -> None:
    with tracking.DotNotTrackScope():
        child._learning_rate = rate


def _compiled_sweep(model: keras.Model, dials: Sequence[keras.Variable], micro: int) -> Callable[..., tf.Tensor]:
    """Compiles one function that trains a step for each row of rates and returns the losses of the batches."""
    step = tf.function(model.train_step, jit_compile=True) if model.jit_compile is True else model.train_step

    def loss_of(data: Any) -> tf.Tensor:
        for metric in model.metrics:  # else `loss` were the mean over the batches so far
            metric.reset_state()
        return tf.cast(step(data)["loss"], tf.float32)

    @tf.function(reduce_retracing=True)
    def run(batch: Iterator[Any], rates: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            for group, dial in enumerate(dials):
                dial.assign(rates[i, group])
            total = loss_of(next(batch))
            for _ in tf.range(micro - 1) if micro > 1 else ():
                total += loss_of(next(batch))
            losses = losses.write(i, total / micro)
        return losses.stack()

    return run


def _tell(on_step: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_step(before + done, total)


def _sweep(
    run: Callable[..., tf.Tensor],
    batch: Iterator[Any],
    rates: np.ndarray,
    stop_factor: float,
    tell: Callable[[int], None],
) -> tuple[np.ndarray, bool]:
    losses = np.zeros(0, "float32")
    for first in range(0, len(rates), CHUNK):
        try:
            chunk = rates[first : first + CHUNK]
            filled = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)))  # one shape for all: compiled once
            found = run(batch, tf.constant(filled), tf.constant(len(chunk)))
            losses = np.concatenate([losses, found.numpy()])
        except (tf.errors.OutOfRangeError, StopIteration):
            raise TrainingError(
                f"An LR range test needs a batch for every step. The batches ran out after {first} of {len(rates)} "
                "steps. Pass a dataset that repeats: `dataset.repeat()`."
            ) from None
        tell(len(losses))
        if (stop := _divergence(losses, stop_factor)) is not None:
            return losses[: stop + 1], True
    return losses, False


def _divergence(losses: np.ndarray, stop_factor: float) -> int | None:
    """Returns the first step at which the smoothed loss is no number, or too many times its best."""
    smoothed = smooth(losses)
    risen = smoothed > stop_factor * np.fmin.accumulate(smoothed)
    risen[:CHUNK] = False  # the first batches of a nearly fitted network differ that much by chance
    beyond = ~np.isfinite(smoothed) | risen
    return int(np.argmax(beyond)) if beyond.any() else None
