"""The smoothing of an LR range test and four rules that read a learning rate from its curve; plain arrays.

The rules return what those of fastai 2.8 return (`valley`, `slide`, `minimum`, `steep`), on the part of the curve that
fastai uses: without the first tenth of the planned steps, without the last five, and without everything from the first
loss on that is not a finite number. They differ where fastai's own code would fail: on short or constant curves.

All rules take `(rates, smoothed, num_steps)`, so that `consensus.py` can ask them in turn; the arguments are described
in `valley`.

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
    """What a single rule reads from a curve.

    Attributes:
        rule: Name of the rule.
        learning_rate: The rate that it suggests.
        index: The step of the curve at which the rule points.
    """

    rule: str
    learning_rate: float
    index: int


Rule = Callable[[np.ndarray, np.ndarray, int], Suggestion | None]


def smooth(losses: Sequence[float] | np.ndarray, beta: float = 0.98) -> np.ndarray:
    """Averages a curve exponentially, with the bias correction of Adam and fastai.

        s_t = beta * s_(t-1) + (1 - beta) * loss_t,  s_0 = 0
        smoothed_t = s_t / (1 - beta^t)

    Args:
        losses: Loss of each step, shape `(steps,)`.
        beta: Weight of the past, 0 <= `beta` < 1; 0 returns the losses unchanged.

    Returns:
        Float64 of shape `(steps,)`; NaN from the first NaN on.
    """
    sums = list(accumulate(map(float, losses), lambda past, loss: beta * past + (1 - beta) * loss, initial=0.0))
    return np.array(sums[1:]) / (1 - beta ** np.arange(1, len(sums)))


def analysed(smoothed: np.ndarray, num_steps: int) -> slice:
    """Returns the part of a curve that the rules use; it may be empty.

    Args:
        smoothed: Smoothed loss of each step made, shape `(steps,)`.
        num_steps: Steps that were planned; the sweep may have stopped before.
    """
    finite = np.isfinite(smoothed)
    # fastai's `num_it // 10`, of the planned steps also where the sweep stopped early.
    first = max(num_steps, 6) // 10
    first_broken = first + int(np.argmin(finite[first:])) if not finite[first:].all() else len(smoothed)
    return slice(first, max(first, min(len(smoothed) - SKIPPED_AT_END, first_broken)))


def valley(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Suggests the rate half-way down the longest descent of the loss.

    The descent is the longest strictly falling subsequence; as in fastai it is taken for a stretch of `length` steps
    that ends where the subsequence ends. The rule points at `last - length + length // 3 + length // 6`, a third plus
    a sixth of the stretch after its start.

    Args:
        rates: Learning rate of each step, rising, shape `(steps,)`.
        smoothed: Smoothed loss of each step, shape `(steps,)`.
        num_steps: Steps that were planned.

    Returns:
        The suggestion; `None` where too little of the curve is left.
    """
    part = analysed(smoothed, num_steps)
    losses = smoothed[part]
    if not len(losses):
        return None
    lengths = _falling_lengths(losses)
    last, length = int(np.argmax(lengths)), int(lengths.max())
    # A constant curve has no descent (length 1). A descent from the first step on has the index -1 + ..., which wraps
    # around to the end in fastai, hence the remainder below.
    index = last - length + length // 3 + length // 6 if length > 1 else 0
    return _at("valley", rates, part.start + index % len(losses))


def _falling_lengths(losses: np.ndarray) -> np.ndarray:
    """Returns the length of the longest strictly falling subsequence that ends at each step, shape `(steps,)`."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] += max(lengths[:i][losses[:i] > losses[i]], default=0)
    return lengths


def slide(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Suggests the last rate at which the slope of the loss equals that of 15 steps before.

    "Equal" is a difference of at most `SLIDE_THRESHOLD`; beyond that rate the curve bends up into the divergence.

    Args:
        rates: As for `valley`.
        smoothed: As for `valley`.
        num_steps: As for `valley`.
    """
    part = analysed(smoothed, num_steps)
    losses = smoothed[part]
    if len(losses) <= SLIDE_WIDTH:
        return None
    slopes = np.gradient(losses)
    # The last step whose slope equals the slope `SLIDE_WIDTH` steps before, and one step further, as in fastai.
    differ = np.abs(slopes[SLIDE_WIDTH:] - slopes[:-SLIDE_WIDTH]) > SLIDE_THRESHOLD
    equal = np.flatnonzero(~differ)
    last = min(equal[-1] + 1, len(differ) - 1) if len(equal) else 0
    return _at("slide", rates, part.start + int(last))


def minimum(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Suggests a tenth of the rate at the lowest loss: at the minimum itself training is about to diverge.

    Args:
        rates: As for `valley`.
        smoothed: As for `valley`.
        num_steps: As for `valley`.
    """
    part = analysed(smoothed, num_steps)
    if part.start >= part.stop:
        return None
    index = part.start + int(np.argmin(smoothed[part]))
    return Suggestion("minimum", float(rates[index]) / 10, index)


def steep(rates: np.ndarray, smoothed: np.ndarray, num_steps: int) -> Suggestion | None:
    """Suggests the rate at which the loss falls fastest per order of magnitude: the least `d loss / d log(rate)`.

    Args:
        rates: As for `valley`.
        smoothed: As for `valley`.
        num_steps: As for `valley`.
    """
    part = analysed(smoothed, num_steps)
    if part.stop - part.start < 2:
        return None
    # Against the logarithm, in which the rates are evenly spaced.
    slopes = np.diff(smoothed[part]) / np.diff(np.log(rates[part]))
    return _at("steep", rates, part.start + int(np.argmin(slopes)))


def _at(rule: str, rates: np.ndarray, index: int) -> Suggestion:
    return Suggestion(rule, float(rates[index]), index)


RULES: tuple[Rule, ...] = (valley, slide, minimum, steep)
