"""The LR range test as people use it: sweep, judge, propose a rate for every group, draw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.unwrap import unwrap
from finetune.results.plots import plot_lr_range
from finetune.training.lr_range.rules import smooth
from finetune.training.lr_range.sweep import Sweep, sweep_rates, trained_groups
from finetune.training.lr_range.verdict import Verdict, average, suggest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all groups"


@dataclass(frozen=True)
class RangeTest:
    """What an LR range test found. In a notebook `.plot()` shows it.

    Attributes:
        sweeps: The sweeps, one for each repeat: of each group that was swept alone by its name, or of `all groups`.
        verdicts: The suggested rate, or why there is none, under the same names.
        base_rates: The rate of each group before, whose ratios a sweep of all groups keeps.
        notes: What else to know.
    """

    sweeps: Mapping[str, tuple[Sweep, ...]]
    verdicts: Mapping[str, Verdict]
    base_rates: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def learning_rates(self) -> dict[str, float]:
        """The rate proposed for each group, in the optimizer's order; a group that got none is left out."""
        together = self.verdicts.get(ALL)
        if together is None:
            return {name: verdict.learning_rate for name, verdict in self.verdicts.items() if verdict.learning_rate}
        if together.learning_rate is None:
            return {}
        last = list(self.base_rates.values())[-1]
        return {name: together.learning_rate * rate / last for name, rate in self.base_rates.items()}

    @property
    def curves(self) -> dict[str, dict[str, Any]]:
        """Plain data of each curve, as `finetune.results.plots.plot_lr_range` draws it."""
        return {name: _curve(sweeps, with_groups=name == ALL) for name, sweeps in self.sweeps.items()}

    def plot(self, path: Path | None = None) -> "Figure":
        """Draws the curves, and writes `<path>.png` and `<path>.svg` if a path is given."""
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
    batches: tf.data.Dataset,
    *,
    group: str | None = None,
    each: bool = False,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    repeats: int = 1,
    others: str = "rest",
    stop_factor: float = 4.0,
    base_rates: Mapping[str, float] | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> RangeTest:
    """Finds learning rates for a compiled model by an LR range test, and leaves no trace in it.

    The rate rises from step to step while the loss of each batch is watched. Weights, moving statistics, optimizer and
    random state are bit-identical afterwards, also after an error or Ctrl-C. The model may hold any Keras optimizer;
    with a `GroupedOptimizer` one multiplier sweeps all groups and keeps the ratios of their rates, unless `group` or
    `each` sweeps them alone.

    Args:
        model: A compiled and built model.
        batches: Batches as for `fit`. A dataset with fewer than there are steps is repeated.
        group: Sweeps this group alone.
        each: Sweeps every group alone, one after another.
        start: First learning rate, > 0, of the last group if all are swept.
        end: Last learning rate, > `start`.
        steps: Steps of a sweep, spaced geometrically; 100 is usual.
        repeats: Sweeps with other batches, whose mean is judged.
        others: What the other groups do while one is swept: `rest` (rate 0) or `stand` at their own rates.
        stop_factor: A sweep stops when its smoothed loss exceeds this many times its best.
        base_rates: The rate of each group that the ratios are taken from, by name; by default its present one.
        on_step: Told the steps done and the steps in all.

    Raises:
        GroupError: If the group does not exist, or the range is none.

    References:
        Smith (2017), Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186
    """
    rates = trained_groups(model) | dict(base_rates or {})
    if others not in ("rest", "stand") or (each and group):
        raise GroupError(
            "An LR range test sweeps one `group`, or `each`, while the `others` rest or stand. Received "
            f"group={group!r}, each={each}, others={others!r}. Give `group` or `each`; `others` is 'rest' or 'stand'."
        )
    swept: list[str | None] = [*rates] if each else [group]
    needed = len(swept) * repeats * steps * (_micro_batches(model) or 1)
    batches, notes = _enough(batches, needed)
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
    found = {name or ALL: tuple(one) for name, one in zip(swept, sweeps, strict=True)}
    return RangeTest(found, {name: judge(one) for name, one in found.items()}, rates, notes)


def judge(sweeps: tuple[Sweep, ...]) -> Verdict:
    """Judges the mean curve of some repeats."""
    losses, repeats = average([sweep.losses for sweep in sweeps]), [sweep.losses for sweep in sweeps]
    return suggest(sweeps[0].x[: len(losses)], losses, num_steps=sweeps[0].planned_steps, repeats=repeats)


def _micro_batches(model: keras.Model) -> int | None:
    optimizer = unwrap(model.optimizer)
    return getattr(optimizer, "gradient_accumulation_steps", None)


def _enough(batches: tf.data.Dataset, needed: int) -> tuple[tf.data.Dataset, tuple[str, ...]]:
    there = int(batches.cardinality())
    if there >= needed or there == tf.data.INFINITE_CARDINALITY:
        return batches, ()
    if there < 0:
        return batches.repeat(), ()
    made = "1 batch" if there == 1 else f"{there} batches"
    return batches.repeat(), (f"The data make {made} and the test needs {needed}: they are repeated.",)


def _curve(sweeps: tuple[Sweep, ...], *, with_groups: bool) -> dict[str, Any]:
    losses = average([sweep.losses for sweep in sweeps])
    first = sweeps[0]
    curve = {
        "rates": first.x[: len(losses)].tolist(),
        "losses": losses.tolist(),
        "smoothed": smooth(losses).tolist(),
        "planned_steps": first.planned_steps,
        "diverged": any(sweep.diverged for sweep in sweeps),
    }
    if len(sweeps) > 1:
        curve["repeats"] = [smooth(sweep.losses).tolist() for sweep in sweeps]
        curve["repeated_losses"] = [sweep.losses.tolist() for sweep in sweeps]
    if with_groups:
        columns = np.transpose(first.rates[: len(losses)])
        curve["group_rates"] = {name: rates.tolist() for name, rates in zip(first.groups, columns, strict=True)}
    return curve
