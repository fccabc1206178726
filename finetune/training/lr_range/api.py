"""The LR range test as a whole: sweep the rates, judge the curves, suggest a rate for every group, draw.

`sweep.py` measures, `rules.py` reads rates from a curve, `consensus.py` decides between them or refuses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError, TrainingError
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.results.plots import plot_lr_range
from finetune.training.fit_data import fit_batches
from finetune.training.lr_range.consensus import Verdict, average, suggest
from finetune.training.lr_range.limits import STOP_FACTOR, check_others
from finetune.training.lr_range.rules import smooth
from finetune.training.lr_range.sweep import Sweep, check_model, sweep_rates, trained_groups
from finetune.training.snapshot import unchanged_random_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all groups"
_MANY = 3  # groups, up to which each is told


@dataclass(frozen=True, repr=False)
class RangeTest:
    """The result of an LR range test. In a notebook `.plot()` shows it; `print` says what it suggests.

    Attributes:
        sweeps: The sweeps, one for each repeat, under the name of the group that was swept alone, or `all groups`.
        verdicts: The suggested rate, or why there is none, under the same names.
        base_rates: The rate of each group before the test, whose ratios a sweep of all groups keeps.
        notes: Remarks for the user, as sentences.
    """

    sweeps: Mapping[str, tuple[Sweep, ...]]
    verdicts: Mapping[str, Verdict]
    base_rates: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def learning_rates(self) -> dict[str, float]:
        """The suggested rate of each group, in the optimizer's order; without the groups that have none."""
        together = self.verdicts.get(ALL)
        if together is None:
            return {name: verdict.learning_rate for name, verdict in self.verdicts.items() if verdict.learning_rate}
        if together.learning_rate is None:
            return {}
        # The swept rate is that of the last group; the others keep their ratio to it.
        last = list(self.base_rates.values())[-1]
        return {name: together.learning_rate * rate / last for name, rate in self.base_rates.items()}

    @property
    def suggestion(self) -> float:
        """The suggested rate of the last group that was swept.

        Raises:
            TrainingError: The test suggests none, and why.
        """
        rates = self.learning_rates
        if not rates:
            raise TrainingError(self.refusal)
        return list(rates.values())[-1]

    @property
    def refusal(self) -> str:
        """Why there is no suggestion, and what to do; empty where there is one."""
        reasons = [verdict.refused for verdict in self.verdicts.values() if verdict.refused]
        if self.learning_rates:
            return ""
        return f"The LR range test suggests no rate. {' '.join(reasons)} Repeat it (`repeats=5`), or write a rate."

    def __repr__(self) -> str:
        lines = [f"note: {note}" for note in (*self.notes, *(n for v in self.verdicts.values() for n in v.notes))]
        lines += [f"no suggestion: {verdict.refused}" for verdict in self.verdicts.values() if verdict.refused]
        return "\n".join([*lines, *self.suggestions()])

    def suggestions(self, digits: Callable[[float], str] = "{:.3g}".format) -> list[str]:
        """Returns a sentence for each group with a suggestion, or one for all where there are many with the same rate.

        Args:
            digits: Writes a rate.
        """
        rates, together = self.learning_rates, self.verdicts.get(ALL)
        if together and len(rates) > _MANY and len(set(rates.values())) == 1:
            rate = next(iter(rates.values()))
            return [f"suggested for all {len(rates)} groups: {digits(rate)}  (confidence {together.confidence:.2f})"]
        confidence = {name: (self.verdicts.get(name) or self.verdicts[ALL]).confidence for name in rates}
        return [
            f"suggested for `{name}`: {digits(rate)}  (confidence {confidence[name]:.2f})"
            for name, rate in rates.items()
        ]

    @property
    def curves(self) -> dict[str, dict[str, Any]]:
        """Plain data of each curve, as `finetune.results.plots.plot_lr_range` draws it."""
        return {name: _curve(sweeps, with_groups=name == ALL) for name, sweeps in self.sweeps.items()}

    def plot(self, path: Path | None = None) -> "Figure":
        """Draws the curves; with a path it also writes `<path>.png` and `<path>.svg`."""
        verdicts = {name: verdict.to_json() for name, verdict in self.verdicts.items()}
        return plot_lr_range(self.curves, verdicts, path=path)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return {
            "learning_rates": self.learning_rates,
            "base_rates": dict(self.base_rates),
            "verdicts": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
            "curves": self.curves,
            "notes": list(self.notes),
            "snapshot_bytes": max(sweep.snapshot_bytes for sweeps in self.sweeps.values() for sweep in sweeps),
        }


def lr_range_test(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    group: str | None = None,
    each: bool = False,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    repeats: int = 1,
    others: str = "frozen",
    stop_factor: float = STOP_FACTOR,
    base_rates: Mapping[str, float] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> RangeTest:
    """Suggests learning rates for a compiled model by an LR range test, and leaves no trace in it.

    The rate rises from step to step, and the loss of each batch is recorded. Weights, moving statistics, optimizer and
    random state are bit-identical afterwards, also after an error or Ctrl-C, and so is every other variable that a step
    uses, such as the slots of a second optimizer. A dataset is opened once. The model may have any Keras optimizer.
    With a `GroupedOptimizer`, one multiplier sweeps all groups and keeps the ratios of their rates, unless `group` or
    `each` sweeps groups alone.

    Args:
        model: A compiled and built model.
        x: Inputs as for `fit`: arrays, a `tf.data.Dataset`, a `PyDataset`, a generator. Where there are fewer batches
            than steps, they are repeated; a generator is read on, and must be long enough.
        y: Targets of arrays.
        batch_size: Rows in a batch of arrays; 32 by default.
        sample_weight: Weights of the rows of arrays, as for `fit`.
        class_weight: Weights of classes, as for `fit`.
        group: Sweeps this group alone.
        each: Sweeps every group alone, one after another.
        start: First learning rate, > 0; of the last group if all are swept.
        end: Last learning rate, > `start`.
        steps: Steps of a sweep, spaced geometrically; 100 is usual.
        repeats: Sweeps, >= 1, each with other batches; the mean of their curves is judged.
        others: What the other groups do while one group is swept: they are `frozen` (rate 0), or train at their own
            `constant` rates.
        stop_factor: A sweep stops when its smoothed loss exceeds this many times its best; > 1.
        base_rates: Rates by group from which the ratios are taken; by default the present rates.
        on_step: Called with the number of steps done and of all steps.

    Raises:
        GroupError: The group does not exist, or the arguments contradict each other or are out of range.
        DataError: `fit` would not take these data.
        TrainingError: The batches ran out, or the model's steps fail or return no loss.

    References:
        Smith (2017), Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186
    """
    check_model(model)
    # In the order of the optimizer's groups, which is the order of the columns of a sweep.
    rates = trained_groups(model) | dict(base_rates or {})
    check_others(others)
    if each and group:
        raise GroupError(
            f"An LR range test sweeps one `group`, or `each` group in turn. Received group={group!r} and each=True. "
            "Remove one of the two."
        )
    swept: list[str | None] = [*rates] if each else [group]
    micro_batches = getattr(unwrap(model.optimizer), "gradient_accumulation_steps", None) or 1
    notes: tuple[str, ...] = ()
    with unchanged_random_state():
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        batches = fit_batches(x, y, batch_size=batch_size, shuffle=True, model=model, **weights)
        if not isinstance(x, GeneratorType):  # which cannot begin again
            batches, notes = _enough(batches, len(swept) * repeats * steps * micro_batches)
    sweeps = sweep_rates(
        model,
        batches,
        groups=swept,
        start=start,
        end=end,
        steps=steps,
        repeats=repeats,
        others=others,
        stop_factor=stop_factor,
        base_rates=rates,
        on_step=on_step,
    )
    by_name = {name or ALL: tuple(repeated) for name, repeated in zip(swept, sweeps, strict=True)}
    return RangeTest(by_name, {name: judge(repeated) for name, repeated in by_name.items()}, rates, notes)


def judge(sweeps: tuple[Sweep, ...]) -> Verdict:
    """Judges the mean curve of repeated sweeps."""
    losses = [sweep.losses for sweep in sweeps]
    mean = average(losses)
    return suggest(sweeps[0].x[: len(mean)], mean, num_steps=sweeps[0].planned_steps, repeats=losses)


def _enough(batches: tf.data.Dataset, needed: int) -> tuple[tf.data.Dataset, tuple[str, ...]]:
    """Returns batches that do not run out, and a note where they have to be repeated."""
    available = int(batches.cardinality())
    if available >= needed or available == tf.data.INFINITE_CARDINALITY:
        return batches, ()
    if available < 0:  # unknown
        return batches.repeat(), ()
    batches_text = "1 batch" if available == 1 else f"{available} batches"
    return batches.repeat(), (f"The data have {batches_text}, and the test needs {needed}: the batches are repeated.",)


def _curve(sweeps: tuple[Sweep, ...], *, with_groups: bool) -> dict[str, Any]:
    # Repeats may stop at different steps; their mean ends with the shortest.
    losses = average([sweep.losses for sweep in sweeps])
    first = sweeps[0]
    curve = {
        "rates": first.x[: len(losses)].tolist(),
        "losses": losses.tolist(),
        "smoothed": smooth(losses).tolist(),
        "planned_steps": first.planned_steps,
        "diverged": any(sweep.diverged for sweep in sweeps),
    }
    # Only then, so that the file of a single sweep stays small.
    if len(sweeps) > 1:
        curve["repeats"] = [smooth(sweep.losses).tolist() for sweep in sweeps]
        curve["repeated_losses"] = [sweep.losses.tolist() for sweep in sweeps]
    if with_groups:
        columns = np.transpose(first.rates[: len(losses)])
        curve["group_rates"] = {name: rates.tolist() for name, rates in zip(first.groups, columns, strict=True)}
    return curve
