"""The verdict on the curve of an LR range test: a learning rate and how sure it is, or why there is none.

The limits were chosen on 364 curves of 52 small tasks (real data; linear, dense, deep and convolutional networks; from
scratch and fine-tuned; five optimizers), each compared with short trainings at 19 rates, 3 seeds each. On 175 curves of
25 other tasks, looked at afterwards, they refused all 28 of noise or of networks trained to the end, and 7 more. On the
140 others the consensus gave away 6 % of what the best rate wins, the rules alone 16 % (valley), 13 % (slide), 5 %
(minimum) and 38 % (steep); it lay within a factor of 3 of the best rate in 63 %, of 10 in 94 %.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.training.lr_range.rules import RULES, SKIPPED_AT_END, SLIDE_WIDTH, Suggestion, analysed, smooth

Array = Sequence[float] | np.ndarray

# Below a fall of as much as the batches scatter, the consensus gave away more than half of what could be won.
MIN_FALL_TO_SCATTER = 1.0
# Repeats of good curves lay at most 0.29 of the fall apart, those of useless ones at least 0.86.
MAX_BAND_TO_FALL = 0.5
# Where most rules lay further apart, the consensus was off by more than 3x in 10 of 12 curves, else in a third.
MAX_DISAGREEMENT = 20.0
_FLAT = 0.002  # of the loss; less is neither a fall nor a rise, even without any scatter
_BEGUN = 0.02  # of the fall; a rule that points before it points at noise
_LEAST_POINTS = SLIDE_WIDTH + 1
_STAYS = 5  # steps that the loss stays high in a divergence; a single batch is none
_FAST_BETA = 0.7  # the usual smoothing shows a divergence dozens of steps late


@dataclass(frozen=True)
class Verdict:
    """What a curve says about the learning rate.

    Attributes:
        learning_rate: The consensus: geometric median of the rules in `used`; `None` if `refused`.
        confidence: 0 to 1. It grows with the fall of the loss against the scatter of the batches, with the agreement of
            the rules and with how many of them were used. It is no probability, but on the tasks looked at afterwards
            82 % of the rates above 0.6 were within a factor of 3 of the best, and 54 % of those below.
        refused: Why there is no rate and what to do; `None` if there is one.
        suggestions: What each rule says that could be asked.
        used: Names of the rules that point at a place where the loss falls.
        disagreement: Factor within which most of the rules in `used` lie; 1 with fewer than two.
        divergence: The rate from which the loss rises above where it began; `None` if it never does.
        notes: What else to know about the rate.
    """

    learning_rate: float | None
    confidence: float
    refused: str | None
    suggestions: tuple[Suggestion, ...] = ()
    used: tuple[str, ...] = ()
    disagreement: float = 1.0
    divergence: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; each suggestion says whether it was used."""
        told = [asdict(suggestion) | {"used": suggestion.rule in self.used} for suggestion in self.suggestions]
        return asdict(self) | {"suggestions": told, "used": list(self.used), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Fall:
    """How far the smoothed loss falls, and how sure that is."""

    begun: int  # the step by which it has begun to fall
    lowest: int
    high: float
    low: float
    scatter: float  # of the batches around the curve
    band: float  # between the repeats; 0 without any

    @property
    def size(self) -> float:
        return self.high - self.low


def check_steps(num_steps: int) -> None:
    """Raises a FinetuneError if a sweep of so many steps could not be judged, whatever it finds."""
    least = next(n for n in range(1, 1000) if n - max(n, 6) // 10 - SKIPPED_AT_END >= _LEAST_POINTS)
    if num_steps < least:
        raise FinetuneError(
            f"A curve is judged without its first tenth and its last {SKIPPED_AT_END} steps, and needs {least} "
            f"steps in all. Received: {num_steps}. Ask for more `steps`; 100 is usual."
        )


def average(repeats: Sequence[Array]) -> np.ndarray:
    """Returns the mean curve of repeats over the steps that all of them made."""
    shortest = min(map(len, repeats))
    return np.mean([np.asarray(repeat, float)[:shortest] for repeat in repeats], axis=0)


def suggest(
    rates: Array, losses: Array, *, num_steps: int | None = None, repeats: Sequence[Array] | None = None
) -> Verdict:
    """Judges the curve of an LR range test.

    Args:
        rates: Learning rate of each step, > 0 and rising, shape `(steps,)`.
        losses: Loss of the batch of each step, not smoothed, shape `(steps,)`; of repeats the `average`.
        num_steps: Steps that were planned, where the test stopped before; `None` for `steps`.
        repeats: Losses of every repeat, shape `(repeats, steps)`; they may differ in length.

    Raises:
        FinetuneError: The arrays are no curve.
    """
    rates, losses = np.asarray(rates, float), np.asarray(losses, float)
    _check(rates, losses)
    num_steps = max(num_steps or 0, len(losses))
    smoothed = smooth(losses)
    part = analysed(smoothed, num_steps)
    if (reason := _too_short(rates, smoothed, part, num_steps)) is not None:
        stopped = _stop(smoothed, num_steps)
        return Verdict(None, 0.0, reason, divergence=None if stopped is None else float(rates[stopped]))
    fall = _fall(losses, smoothed, part, repeats or ())
    divergence = _divergence(losses, fall)
    suggestions = tuple(found for rule in RULES if (found := rule(rates, smoothed, num_steps)) is not None)
    used = [found for found in suggestions if rates[fall.begun] <= found.learning_rate <= rates[fall.lowest]]
    disagreement = _disagreement(used)
    verdict = Verdict(
        learning_rate=None,
        confidence=0.0,
        refused=_not_clear(rates, fall, divergence, num_steps) or _no_agreement(used, disagreement),
        suggestions=suggestions,
        used=tuple(found.rule for found in used),
        disagreement=disagreement,
        divergence=None if divergence is None else float(rates[divergence]),
    )
    if verdict.refused:
        return verdict
    consensus = math.exp(np.median([math.log(found.learning_rate) for found in used]))
    confidence = _confidence(fall, disagreement, len(used))
    return replace(verdict, learning_rate=consensus, confidence=confidence, notes=_notes(rates, losses, fall))


def _check(rates: np.ndarray, losses: np.ndarray) -> None:
    if rates.ndim == 1 and rates.shape == losses.shape and len(rates) and rates[0] > 0 and (np.diff(rates) > 0).all():
        return
    raise FinetuneError(
        "A curve has one loss for each learning rate, and the rates are above 0 and rise. Received rates of shape "
        f"{rates.shape} and losses of shape {losses.shape}. Pass the `rates` and the `losses` of one sweep."
    )


# Measuring


def _fall(losses: np.ndarray, smoothed: np.ndarray, part: slice, repeats: Sequence[Array]) -> _Fall:
    lowest = part.start + int(np.argmin(smoothed[part]))
    descent = smoothed[part.start : lowest + 1]
    high, low = float(descent.max()), float(descent[-1])
    if math.isclose(high, low):  # the smoothing has rounding errors
        high = low
    begun = part.start + int(np.flatnonzero(descent >= high - _BEGUN * (high - low))[-1])
    band = _band(repeats, part.start, lowest + 1) if len(repeats) > 1 else 0.0
    return _Fall(begun, lowest, high, low, _scatter(losses[: max(lowest + 1, len(losses) // 2)]), band)


def _scatter(losses: np.ndarray) -> float:
    """Returns the standard deviation of the batches around the curve; robust, and blind to a steady fall."""
    jumps = np.diff(losses)
    return 1.4826 * float(np.median(np.abs(jumps - np.median(jumps)))) / math.sqrt(2)


def _band(repeats: Sequence[Array], start: int, stop: int) -> float:
    """Returns how far apart the smoothed repeats lie at the middle one of these steps."""
    stop = min(stop, *map(len, repeats))
    return float(np.median(np.ptp([smooth(repeat)[start:stop] for repeat in repeats], axis=0)))


def _divergence(losses: np.ndarray, fall: _Fall) -> int | None:
    """Returns the first step after the lowest loss from which the loss stays above its start for a while."""
    quick = smooth(losses, _FAST_BETA)
    above = ~(quick <= fall.high + max(2 * fall.scatter, _FLAT * abs(fall.high)))  # so that NaN is above
    steps = range(int(np.nanargmin(quick)), len(quick))
    return next((step for step in steps if above[step : step + _STAYS].all()), None)


def _stop(smoothed: np.ndarray, num_steps: int) -> int | None:
    """Returns the step at which the test stopped or the loss was no number any more; `None` if it ran to its end."""
    numbers = np.isfinite(smoothed)
    if not numbers.all():
        return int(np.argmin(numbers))
    return len(smoothed) - 1 if len(smoothed) < num_steps else None


def _disagreement(used: Sequence[Suggestion]) -> float:
    """Returns the smallest factor within which most of them lie, so that a single stray one does not count."""
    rates = sorted(found.learning_rate for found in used)
    most = len(rates) // 2 + 1
    return min((rates[i + most - 1] / rates[i] for i in range(len(rates) - most + 1)), default=1.0)


def _confidence(fall: _Fall, disagreement: float, num_used: int) -> float:
    clarity = min(fall.size / (fall.size + fall.scatter), 1 - fall.band / fall.size)
    agreement = 1 - math.log(disagreement) / math.log(MAX_DISAGREEMENT) / 2
    return clarity * agreement * num_used / len(RULES)


# Reasons


def _too_short(rates: np.ndarray, smoothed: np.ndarray, part: slice, num_steps: int) -> str | None:
    points = part.stop - part.start
    if points >= _LEAST_POINTS:
        return None
    if (stopped := _stop(smoothed, num_steps)) is not None:
        where = f"at step {stopped + 1} of {num_steps}, with a rate of {rates[stopped]:.1e}. {_lower(rates)}"
        if np.isfinite(smoothed[stopped]):
            return f"The loss diverges at once, {where}"
        return f"The loss is no number {where} If that changes nothing, look for NaN in the data or in the weights."
    return (
        f"The test is too short: {num_steps} steps leave {points} to look at, without the first tenth and the last "
        f"{SKIPPED_AT_END}, and {_LEAST_POINTS} are needed. Ask for more `steps`; 100 is usual."
    )


def _not_clear(rates: np.ndarray, fall: _Fall, divergence: int | None, num_steps: int) -> str | None:
    """Returns why the loss cannot be said to fall; `None` if it does."""
    told = f"it falls by {fall.size:.2g}, and its batches scatter by {fall.scatter:.2g}"
    if fall.size > max(MIN_FALL_TO_SCATTER * fall.scatter, _FLAT * abs(fall.high)):
        told = f"it falls by {fall.size:.2g}, and its repeats lie {fall.band:.2g} apart"
        return f"The curve is too noisy: {told}. {_CALMER}" if fall.band > MAX_BAND_TO_FALL * fall.size else None
    if divergence is not None and divergence < num_steps / 3:
        return f"The loss only rises, from a rate of {rates[divergence]:.1e} on. {_lower(rates)}"
    if divergence is not None:
        return (
            f"The loss does not fall before it rises, at a rate of {rates[divergence]:.1e}: {told}. Either the network "
            f"is already as good as it gets on these data, or they are too noisy. {_CALMER}"
        )
    return (
        f"The curve is flat up to a rate of {rates[-1]:.1e}: {told}. Raise `end`. If that changes nothing, see with "
        "`finetune plan` whether the groups that should be trained are, and use larger batches."
    )


def _no_agreement(used: Sequence[Suggestion], disagreement: float) -> str | None:
    if len(used) < 2:
        count = "One" if used else "None"
        return f"{count} of the {len(RULES)} rules points at a place where the loss falls; 2 are needed. {_CALMER}"
    if disagreement <= MAX_DISAGREEMENT:
        return None
    lowest, highest = (pick(used, key=lambda found: found.learning_rate) for pick in (min, max))
    return (
        f"The rules disagree: most of them lie within a factor of {disagreement:.0f}, and {MAX_DISAGREEMENT:.0f} is "
        f"the most that can be trusted. They range from {lowest.learning_rate:.1e} (`{lowest.rule}`) to "
        f"{highest.learning_rate:.1e} (`{highest.rule}`). {_CALMER} Or compare short trainings in that range."
    )


def _notes(rates: np.ndarray, losses: np.ndarray, fall: _Fall) -> tuple[str, ...]:
    quick = smooth(losses, _FAST_BETA)  # the usual smoothing falls on long after the losses are at rest
    before = quick[-1 - max(len(quick) // 10, 1)]
    if not before - quick[-1] > _BEGUN * fall.size:
        return ()
    return (f"The loss still falls at the end of the range, {rates[-1]:.1e}: a higher `end` may show a higher rate.",)


def _lower(rates: np.ndarray) -> str:
    return f"Start lower, e.g. with a `start` of {rates[0] / 100:.0e}."


_CALMER = "Use larger batches, more `steps`, or the mean of some `repeats`, e.g. 5."
