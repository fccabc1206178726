"""The smoothing of an LR range test and four rules that read a learning rate from its curve; plain arrays.

The rules are those of fastai 2.8 in what they answer, on the part of the curve that fastai looks at: without the first
tenth of the planned steps, the last five, and whatever comes at and after the first loss that is no number.

References:
    Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.3, https://arxiv.org/abs/1506.01186
    fastai, callbacks for scheduling, https://docs.fast.ai/callback.schedule.html
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

SKIPPED_AT_END = 5
SLIDE_WIDTH = 15  # steps between the two slopes that `slide` compares
SLIDE_THRESHOLD = 0.005  # of the loss, as it is: the rule depends on the scale of the loss


@dataclass(frozen=True)
class Suggestion:
    """What one rule says.

    Attributes:
        rule: Name of the rule.
        learning_rate: The rate it suggests.
        index: The step of the curve that made the rule say so.
    """

    rule: str
    learning_rate: float
    index: int


Rule = Callable[[np.ndarray, np.ndarray, int], Suggestion | None]


def smooth(losses: Sequence[float] | np.ndarray, beta: float = 0.98) -> np.ndarray:
    """Averages a curve exponentially, its start corrected for the missing past.

    Args:
        losses: Loss of each step, shape `(steps,)`.
        beta: Weight of the past, 0 <= `beta` < 1; 0 leaves the losses as they are.

    Returns:
        Float64 of shape `(steps,)`; NaN from the first NaN on.
    """
    sums = list(accumulate(map(float, losses), lambda past, loss: beta * past + (1 - beta) * loss, initial=0.0))
    return np.array(sums[1:]) / (1 - beta ** np.arange(1, len(sums)))


def analysed(smoothed: np.ndarray, num_steps: int) -> slice:
    """Returns the part of a curve that the rules look at; it may be empty.

    Args:
        smoothed: Smoothed loss of each step made, shape `(steps,)`.
        num_steps: Steps that were planned; the sweep may have stopped before.
    """
    numbers = np.isfinite(smoothed)
    first = max(num_steps, 6) // 10
    broken = first + int(np.argmin(numbers[first:])) if not numbers[first:].all() else len(smoothed)
    return slice(first, max(first, min(len(smoothed) - SKIPPED_AT_END, broken)))


def valley(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Half-way down the longest descent: of the longest falling subsequence, seen as ending where it ends.

    Args:
        rates: Learning rate of each step, rising, shape `(steps,)`.
        smoothed: Smoothed loss of each step, shape `(steps,)`.
        num_steps: Steps that were planned.

    Returns:
        The suggestion; `None` where too little of the curve is left to look at.
    """
    part = analysed(smoothed, num_steps)
    losses = smoothed[part]
    if not len(losses):
        return None
    lengths = _falling_lengths(losses)
    last, length = int(np.argmax(lengths)), int(lengths.max())
    # A fall of one step has no inside. One that begins at the very start is counted from before it, as fastai does.
    index = last - length + length // 3 + length // 6 if length > 1 else 0
    return _at("valley", rates, part.start + index % len(losses))


def _falling_lengths(losses: np.ndarray) -> np.ndarray:
    """Returns the length of the longest strictly falling subsequence that ends at each step."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] += max(lengths[:i][losses[:i] > losses[i]], default=0)
    return lengths


def slide(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """From the right, where the slope stops differing from the one 15 steps to the left; see `valley`."""
    part = analysed(smoothed, num_steps)
    losses = smoothed[part]
    if len(losses) <= SLIDE_WIDTH:
        return None
    slopes = np.gradient(losses)
    differ = np.abs(slopes[SLIDE_WIDTH:] - slopes[:-SLIDE_WIDTH]) > SLIDE_THRESHOLD
    alike = np.flatnonzero(~differ)
    last = min(alike[-1] + 1, len(differ) - 1) if len(alike) else 0
    return _at("slide", rates, part.start + int(last))


def minimum(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """A tenth of the rate at the lowest loss: one order of magnitude before the minimum; see `valley`."""
    part = analysed(smoothed, num_steps)
    if part.start >= part.stop:
        return None
    index = part.start + int(np.argmin(smoothed[part]))
    return Suggestion("minimum", float(rates[index]) / 10, index)


def steep(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Where the loss falls fastest against the logarithm of the rate; see `valley`."""
    part = analysed(smoothed, num_steps)
    if part.stop - part.start < 2:
        return None
    slopes = np.diff(smoothed[part]) / np.diff(np.log(rates[part]))
    return _at("steep", rates, part.start + int(np.argmin(slopes)))


def _at(rule: str, rates: np.ndarray, index: int) -> Suggestion:
    return Suggestion(rule, float(rates[index]), index)


RULES: tuple[Rule, ...] = (valley, slide, minimum, steep)
