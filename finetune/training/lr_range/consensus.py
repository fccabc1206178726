"""The verdict on the curve of an LR range test: a learning rate and how sure it is, or the reason why there is none.

No rule of `rules.py` is right on every curve. So all are asked; those that point at a place where the loss does not
fall are dropped; the consensus is the geometric median of the others. A curve that does not fall clearly, or on which
the rules disagree wildly, gets no rate.

The limits were chosen on 364 curves of 52 small tasks (real data; linear, dense, deep and convolutional networks; from
scratch and fine-tuned; five optimizers), each compared with short trainings at 19 rates, 3 seeds each. They were then
tested on 175 curves of 25 other tasks. They refused all 28 curves of noise or of networks trained to the end, and 7
more. On the remaining 140 curves, training at the consensus lost 6 % of the improvement that the best rate makes; a
single rule lost 16 % (valley), 13 % (slide), 5 % (minimum) and 38 % (steep). The consensus was within a factor of 3 of
the best rate on 63 % of the curves, and within a factor of 10 on 94 %.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.training.lr_range.rules import RULES, SKIPPED_AT_END, SLIDE_WIDTH, Suggestion, analysed, smooth

Array = Sequence[float] | np.ndarray

# Where the loss falls by less than the batches scatter, the consensus lost more than half of the possible improvement.
MIN_FALL_TO_SCATTER = 1.0
# Repeats of useful curves were at most 0.29 of the fall apart, those of useless curves at least 0.86.
MAX_BAND_TO_FALL = 0.5
# Where most rules were further apart, the consensus was off by more than 3x on 10 of 12 curves, otherwise on a third.
MAX_DISAGREEMENT = 20.0
_FLAT = 0.002  # of the loss; a smaller change is neither a fall nor a rise, even without any scatter
_BEGUN = 0.02  # of the fall; a rule that points at an earlier step points at noise
_LEAST_POINTS = SLIDE_WIDTH + 1  # the rule `slide` needs the most
_MOST_STEPS = 1_000_000  # of a sweep
_STAYS = 5  # steps for which the loss is high in a divergence; a single bad batch is not a divergence
_FAST_BETA = 0.7  # the smoothing of the rules (0.98) shows a divergence dozens of steps late


@dataclass(frozen=True)
class Verdict:
    """The learning rate that a curve suggests, or why it suggests none.

    Attributes:
        learning_rate: The consensus: geometric median of the rules in `used`; `None` if `refused`.
        confidence: From 0 to 1. It grows with the fall of the loss relative to the scatter of the batches, with the
            agreement of the rules and with how many of them were used. It is not a probability; on the test tasks 82 %
            of the rates with a confidence above 0.6 were within a factor of 3 of the best rate, and 54 % of the others.
        refused: Why there is no rate and what to do; `None` if there is a rate.
        suggestions: The suggestions of the rules, as far as the curve is long enough for them.
        used: Names of the rules that point at a place where the loss falls.
        disagreement: Factor within which most of the rules in `used` lie; 1 with fewer than two.
        divergence: The rate from which the loss stays above its start; `None` if it never does.
        notes: Remarks for the user, as sentences.
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
        rows = [asdict(suggestion) | {"used": suggestion.rule in self.used} for suggestion in self.suggestions]
        return asdict(self) | {"suggestions": rows, "used": list(self.used), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Fall:
    """How far the smoothed loss falls, and how far that can be trusted.

    Attributes:
        begun: The step at which the loss has begun to fall.
        lowest: The step of its lowest value.
        high: Its highest value before that.
        low: Its lowest value.
        scatter: Standard deviation of the batches around the curve.
        band: Distance between the repeats; 0 without repeats.
    """

    begun: int
    lowest: int
    high: float
    low: float
    scatter: float
    band: float

    @property
    def size(self) -> float:
        return self.high - self.low


def check_steps(num_steps: int) -> None:
    """Raises a FinetuneError if a sweep would be too short to be judged, whatever its losses, or endless."""
    least = next(n for n in range(1, 1000) if n - max(n, 6) // 10 - SKIPPED_AT_END >= _LEAST_POINTS)
    if num_steps < least:
        raise FinetuneError(
            f"A curve is judged without its first tenth and its last {SKIPPED_AT_END} steps, so it needs at least "
            f"{least} `steps`. Received: {num_steps}. Set `steps` higher; 100 is usual."
        )
    if num_steps > _MOST_STEPS:
        raise FinetuneError(f"A sweep has at most {_MOST_STEPS:,} `steps`. Received: {num_steps:,}. 100 is usual.")


def average(repeats: Sequence[Array]) -> np.ndarray:
    """Returns the mean curve of repeats, over the steps that all of them made."""
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
        FinetuneError: The arrays are not a curve.
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
    answers = (rule(rates, smoothed, num_steps) for rule in RULES)
    suggestions = tuple(suggestion for suggestion in answers if suggestion is not None)
    used = [s for s in suggestions if rates[fall.begun] <= s.learning_rate <= rates[fall.lowest]]
    disagreement = _disagreement(used)
    verdict = Verdict(
        learning_rate=None,
        confidence=0.0,
        refused=_not_clear(rates, fall, divergence, num_steps) or _no_agreement(used, disagreement),
        suggestions=suggestions,
        used=tuple(suggestion.rule for suggestion in used),
        disagreement=disagreement,
        divergence=None if divergence is None else float(rates[divergence]),
    )
    if verdict.refused:
        return verdict
    # The median of the logarithms: rates differ by factors, so their middle is geometric.
    consensus = math.exp(np.median([math.log(suggestion.learning_rate) for suggestion in used]))
    confidence = _confidence(fall, disagreement, len(used))
    return replace(verdict, learning_rate=consensus, confidence=confidence, notes=_notes(rates, losses, fall))


def _check(rates: np.ndarray, losses: np.ndarray) -> None:
    if rates.ndim == 1 and rates.shape == losses.shape and len(rates) and rates[0] > 0 and (np.diff(rates) > 0).all():
        return
    raise FinetuneError(
        "A curve has a loss for each learning rate, and the rates are above 0 and rise. Received rates of shape "
        f"{rates.shape} and losses of shape {losses.shape}. Pass the `rates` and the `losses` of a single sweep."
    )


# Measuring


def _fall(losses: np.ndarray, smoothed: np.ndarray, part: slice, repeats: Sequence[Array]) -> _Fall:
    lowest = part.start + int(np.argmin(smoothed[part]))
    descent = smoothed[part.start : lowest + 1]
    high, low = float(descent.max()), float(descent[-1])
    if math.isclose(high, low):  # rounding errors of the smoothing are not a fall
        high = low
    begun = part.start + int(np.flatnonzero(descent >= high - _BEGUN * (high - low))[-1])
    band = _band(repeats, part.start, lowest + 1) if len(repeats) > 1 else 0.0
    return _Fall(begun, lowest, high, low, _scatter(losses[: max(lowest + 1, len(losses) // 2)]), band)


def _scatter(losses: np.ndarray) -> float:
    """Returns the standard deviation of the batches around the curve.

    It is taken from the differences of neighbours, so that a steady fall does not count as scatter: the median absolute
    deviation, times 1.4826 for the standard deviation of a normal distribution, over sqrt(2) for a difference of two.
    """
    jumps = np.diff(losses)
    return 1.4826 * float(np.median(np.abs(jumps - np.median(jumps)))) / math.sqrt(2)


def _band(repeats: Sequence[Array], start: int, stop: int) -> float:
    """Returns the distance between the highest and the lowest smoothed repeat, the median over these steps."""
    stop = min(stop, *map(len, repeats))
    return float(np.median(np.ptp([smooth(repeat)[start:stop] for repeat in repeats], axis=0)))


def _divergence(losses: np.ndarray, fall: _Fall) -> int | None:
    """Returns the first step after the lowest loss from which the loss stays above its start for `_STAYS` steps."""
    quick = smooth(losses, _FAST_BETA)
    above = ~(quick <= fall.high + max(2 * fall.scatter, _FLAT * abs(fall.high)))  # not `>`: NaN counts as above
    steps = range(int(np.nanargmin(quick)), len(quick))
    return next((step for step in steps if above[step : step + _STAYS].all()), None)


def _stop(smoothed: np.ndarray, num_steps: int) -> int | None:
    """Returns the step at which the sweep stopped or the loss became NaN; `None` if it ran to its end."""
    finite = np.isfinite(smoothed)
    if not finite.all():
        return int(np.argmin(finite))
    return len(smoothed) - 1 if len(smoothed) < num_steps else None


def _disagreement(used: Sequence[Suggestion]) -> float:
    """Returns the smallest factor within which most of the rates lie, so that a single outlier does not count."""
    rates = sorted(suggestion.learning_rate for suggestion in used)
    most = len(rates) // 2 + 1
    return min((rates[i + most - 1] / rates[i] for i in range(len(rates) - most + 1)), default=1.0)


def _confidence(fall: _Fall, disagreement: float, num_used: int) -> float:
    """Multiplies how clear the fall is, how well the rules agree (1 to 0.5), and the share of rules that were used."""
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
        return f"The loss is not finite {where} If that changes nothing, look for NaN in the data or in the weights."
    return (
        f"The test is too short: of {num_steps} steps {points} can be used, without the first tenth and the last "
        f"{SKIPPED_AT_END}, and {_LEAST_POINTS} are needed. Set `steps` higher; 100 is usual."
    )


def _not_clear(rates: np.ndarray, fall: _Fall, divergence: int | None, num_steps: int) -> str | None:
    """Returns why the loss does not clearly fall; `None` if it does."""
    measured = f"it falls by {fall.size:.2g}, and its batches scatter by {fall.scatter:.2g}"
    if fall.size > max(MIN_FALL_TO_SCATTER * fall.scatter, _FLAT * abs(fall.high)):
        measured = f"it falls by {fall.size:.2g}, and its repeats are {fall.band:.2g} apart"
        return f"The curve is too noisy: {measured}. {_CALMER}" if fall.band > MAX_BAND_TO_FALL * fall.size else None
    if divergence is not None and divergence < num_steps / 3:
        return f"The loss only rises, starting at a rate of {rates[divergence]:.1e}. {_lower(rates)}"
    if divergence is not None:
        return (
            f"The loss does not fall before it rises, at a rate of {rates[divergence]:.1e}: {measured}. Either the "
            f"network is already trained on these data, or they are too noisy. {_CALMER}"
        )
    return (
        f"The curve is flat up to a rate of {rates[-1]:.1e}: {measured}. Set `end` higher. If that changes nothing, "
        "check with `finetune plan` that the right groups are trained, and use larger batches."
    )


def _no_agreement(used: Sequence[Suggestion], disagreement: float) -> str | None:
    if len(used) < 2:
        return (
            f"At least 2 of the {len(RULES)} rules must find a rate at which the loss falls. Received: {len(used)}. "
            f"{_CALMER}"
        )
    if disagreement <= MAX_DISAGREEMENT:
        return None
    lowest, highest = (pick(used, key=lambda suggestion: suggestion.learning_rate) for pick in (min, max))
    return (
        f"The rules disagree: most of them lie within a factor of {disagreement:.0f}, and a consensus needs "
        f"{MAX_DISAGREEMENT:.0f} at most. They range from {lowest.learning_rate:.1e} (`{lowest.rule}`) to "
        f"{highest.learning_rate:.1e} (`{highest.rule}`). {_CALMER} Or compare short trainings in that range."
    )


def _notes(rates: np.ndarray, losses: np.ndarray, fall: _Fall) -> tuple[str, ...]:
    quick = smooth(losses, _FAST_BETA)  # the smoothing of the rules still falls long after the losses are constant
    before = quick[-1 - max(len(quick) // 10, 1)]
    if not before - quick[-1] > _BEGUN * fall.size:
        return ()
    return (f"The loss still falls at the end of the range, {rates[-1]:.1e}: a higher `end` may show a higher rate.",)


def _lower(rates: np.ndarray) -> str:
    return f"Start lower, e.g. with a `start` of {rates[0] / 100:.0e}."


_CALMER = "Use larger batches, more `steps`, or the mean of several `repeats`, e.g. 5."
