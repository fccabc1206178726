#!/usr/bin/env python3
"""Compares strategies of fine-tuning on the digits example, with intervals, paired tests and a plot.

Every strategy gets the same optimizer (AdamW), the same number of steps and the same search: on each seed (split of the
digits, fresh head, order of the batches) it is trained at every peak rate, the best one on 400 validation rows is
taken, and its accuracy on 1,000 test rows counts. Every training is a line of a JSON file, which is written while it
runs: what is in there is not trained again.

    python scripts/compare_strategies.py --json strategies.json                                  # train, or go on
    python scripts/compare_strategies.py --from strategies.json --markdown docs/strategies.md    # tables and plot alone
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from compare_digits import HEAD, MIDDLE, STEM, TOP, WEIGHTS, choose, markdown
from plot_step import fill

import finetune
from finetune.build import RunLength, build_rate
from finetune.examples.digits import small_cnn, uci_digits
from finetune.recipe.phasing import STRATEGIES
from finetune.recipe.unfreezing import written_out
from finetune.results.artifacts import replacing
from finetune.results.figures import GREY, finish, line_style, new_figure, style
from finetune.sources.data import Examples

GROUPS = {"stem": STEM, "middle": MIDDLE, "top": TOP, "head": HEAD}  # input to output
BATCH_SIZE, STEPS_PER_EPOCH = 20, 5  # a smaller training set is repeated until it fills five batches
EPOCHS = {20: 12, 100: 20}  # by training rows
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
VALIDATION_ROWS = 400
BASELINE = "uniform"
Cell = dict[str, Any]
Key = tuple[str, int, int, float]


# -- What is compared -------------------------------------------------------------------------------------------------


def shipped(strategy: str, peak: float, epochs: int) -> list[finetune.Phase]:
    """The phases that `phases: <strategy>` stands for in a recipe, with the rates and schedules it brings."""
    peaks = dict.fromkeys(GROUPS, peak)
    phases = []
    for phase in written_out(STRATEGIES[strategy](strategy=strategy), peaks, epochs):
        length = RunLength(phase.epochs or 0, STEPS_PER_EPOCH)
        rates = {name: build_rate(rate, length) for name, rate in phase.rates.items()}
        if phase.clock == "phase" and not rates:  # the groups' own schedules, anew in every phase
            rates = dict.fromkeys(GROUPS if phase.train == "all" else phase.train, decayed(peak, length.steps))
        phases.append(finetune.Phase(phase.train, epochs=phase.epochs, rates=rates, clock=phase.clock))
    return phases


def gradual_alone(peak: float, epochs: int) -> list[finetune.Phase]:
    """Gradual unfreezing, and nothing else: one schedule and one rate for all groups, as without phases."""
    return [finetune.Phase(phase.train, epochs=phase.epochs) for phase in shipped("gradual_unfreezing", peak, epochs)]


@dataclass(frozen=True)
class Arm:
    """One strategy.

    Attributes:
        restored: Whether the pretrained weights are restored below the head.
        frozen: Groups that are never trained.
        decay: How many times smaller a group's rate is than that of the next.
        phases: Makes the phases for a peak rate and a number of epochs; without, all groups train all the time.
    """

    restored: bool = True
    frozen: tuple[str, ...] = ()
    decay: float = 1.0
    phases: Callable[[float, int], list[finetune.Phase]] | None = None


ARMS = {
    "from scratch": Arm(restored=False),
    "head only": Arm(frozen=("stem", "middle", "top")),
    BASELINE: Arm(),
    "discriminative": Arm(decay=2.6),
    "gradual unfreezing": Arm(phases=gradual_alone),
    "all three": Arm(phases=functools.partial(shipped, "gradual_unfreezing")),
    "freeze_then_all": Arm(phases=functools.partial(shipped, "freeze_then_all")),
    "lp_ft": Arm(phases=functools.partial(shipped, "lp_ft")),
}


def decayed(rate: float, steps: int) -> Any:
    """The schedule of `recipes/digits.yaml`: half the rate after every quarter of the run."""
    return finetune.exponential_decay(rate, decay_steps=max(steps // 4, 1), decay_rate=0.5, staircase=True)


# -- Training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """One compiled network, trained over and over from a starting point."""

    def __init__(self, arm: Arm, rows: int):
        self.arm, self.epochs = arm, EPOCHS[rows]
        self.model = small_cnn()
        selectors = [finetune.Selector(n, prefixes=layers, frozen=n in arm.frozen) for n, layers in GROUPS.items()]
        self.groups = finetune.resolve_groups(self.model, selectors)
        finetune.freeze(self.model, self.groups)
        rates = finetune.discriminative_rates(1.0, len(GROUPS), decay=arm.decay)
        steps = self.epochs * STEPS_PER_EPOCH
        self.optimizer = finetune.GroupedOptimizer(
            {
                group.name: (keras.optimizers.AdamW(decayed(rate, steps), weight_decay=0.01), group)
                for group, rate in zip(self.groups, rates, strict=True)
                if not group.frozen
            }
        )
        self.optimizer.build(self.model.trainable_variables)
        self.fresh = [keras.ops.convert_to_numpy(variable) for variable in self.optimizer.variables]
        self.model.compile(self.optimizer, loss="sparse_categorical_crossentropy", steps_per_execution=STEPS_PER_EPOCH)

    def fit(self, examples: Examples, peak: float, seed: int) -> list[np.ndarray]:
        """Trains afresh, the last group at the peak rate; returns the weights."""
        self.model.set_weights(starting_point(self.arm.restored, seed))
        self.optimizer.set_weights(self.fresh)
        self.optimizer.learning_rate = peak  # the others keep their ratio to it
        repeats = STEPS_PER_EPOCH * BATCH_SIZE // len(examples.x_train)
        x, y = np.tile(examples.x_train, (repeats, 1, 1, 1)), np.tile(examples.y_train, repeats)
        keras.utils.set_random_seed(seed)  # the order of the batches
        if self.arm.phases:
            phases = self.arm.phases(peak, self.epochs)
            finetune.train_phases(self.model, self.groups, phases, x, y, batch_size=BATCH_SIZE)
        else:
            fast = [finetune.FastLoop()]
            self.model.fit(x, y, batch_size=BATCH_SIZE, epochs=self.epochs, callbacks=fast, verbose=0)
        assert int(self.optimizer.iterations) == self.epochs * STEPS_PER_EPOCH
        return self.model.get_weights()


@functools.lru_cache(maxsize=4)
def starting_point(restored: bool, seed: int) -> list[np.ndarray]:
    keras.utils.set_random_seed(seed)
    model = small_cnn()
    if restored:
        finetune.restore(model, WEIGHTS, exclude=["head"])
    return model.get_weights()


class Runner:
    """Trains cells; a trainer without phases is kept, so that its step is compiled once."""

    def __init__(self) -> None:
        self.judge = small_cnn()
        self.trainers: dict[tuple[str, int], Trainer] = {}

    def cell(self, name: str, rows: int, seed: int, peak: float) -> Cell:
        arm = ARMS[name]
        trainer = self.trainers.get((name, rows)) or Trainer(arm, rows)
        if not arm.phases:  # phases compile anew whatever is kept: their schedules differ
            self.trainers[name, rows] = trainer
        examples = digits(rows, seed)
        self.judge.set_weights(trainer.fit(examples, peak, seed))
        scores = {
            "validation": self.accuracy(examples.x_validation, examples.y_validation),
            "test": self.accuracy(examples.x_test, examples.y_test),
        }
        return {"arm": name, "rows": rows, "seed": seed, "peak": peak, **scores}

    def accuracy(self, x: Any, y: Any) -> float:
        return round(float(np.mean(self.judge.predict_on_batch(x).argmax(-1) == y)), 4)


@functools.lru_cache(maxsize=4)
def digits(rows: int, seed: int) -> Examples:
    return uci_digits(rows, validation_rows=VALIDATION_ROWS, seed=seed)


def train(wanted: Sequence[Key], cells: list[Cell], save: Callable[[], None]) -> None:
    """Adds what is missing to the cells; saves every half minute, and at the end."""
    runner, start, saved = Runner(), time.monotonic(), time.monotonic()
    missing = [key for key in wanted if key not in {key_of(cell) for cell in cells}]
    try:
        for number, key in enumerate(missing, start=1):
            cells.append(runner.cell(*key))
            if time.monotonic() - saved > 30:
                save()
                saved = time.monotonic()
                print(f"{saved - start:5.0f} s  {number} of {len(missing)}: {cells[-1]}", file=sys.stderr, flush=True)
    finally:
        save()


def key_of(cell: Cell) -> Key:
    return cell["arm"], cell["rows"], cell["seed"], cell["peak"]


# -- Statistics -------------------------------------------------------------------------------------------------------


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """Returns the t within which Student's distribution lies with this probability, on both sides of 0.

    >>> round(t_quantile(9), 4)
    2.2622
    """
    angles = np.linspace(0, np.pi / 2, 200_001)  # t = sqrt(degrees) tan(angle) makes the density a power of a cosine
    density = np.cos(angles) ** (degrees - 1)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(level, inside / inside[-1], angles)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % interval, by Student's t; the width of one value is NaN."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def sign_flip_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p value of an exact paired permutation test of the mean.

    Were two strategies the same, every difference could as well have had the other sign. The p value is the share of
    all 2**n choices of signs whose sum is at least as far from 0; so with n pairs it is at least 2 / 2**n.

    Args:
        differences: One for each pair, at most 20.
    """
    found = np.array(differences)
    signs = 1 - 2 * (np.arange(2 ** len(found))[:, np.newaxis] >> np.arange(len(found)) & 1)
    return float(np.mean(np.abs(signs @ found) >= abs(found.sum()) - 1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number: step-down, Holm (1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


# -- Tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The cells of all arms on one number of rows.

    Attributes:
        rows: Training rows.
        seeds, rates: What every arm was trained with.
        tuned: Of each arm, test accuracy at the peak that was chosen on validation rows, one a seed.
        peaks: Of each arm, those peaks.
        by_rate: Of each arm, test accuracy of shape `(seeds, rates)`.
    """

    rows: int
    seeds: list[int]
    rates: list[float]
    tuned: dict[str, np.ndarray]
    peaks: dict[str, list[float]]
    by_rate: dict[str, np.ndarray]


def scores(cells: Sequence[Cell], rows: int) -> Scores:
    """Puts cells in order; only seeds count of which every arm has every rate."""
    own = {key_of(cell): cell for cell in cells if cell["rows"] == rows}
    arms = [name for name in ARMS if any(key[0] == name for key in own)]
    rates = sorted({key[3] for key in own})
    every = sorted({key[2] for key in own})
    seeds = [s for s in every if all((arm, rows, s, rate) in own for arm in arms for rate in rates)]
    if not seeds:
        raise SystemExit(f"Not one seed of {rows} rows is complete. Run `--json FILE` until it ends.")
    found = {
        arm: [[(own[arm, rows, s, r]["validation"], own[arm, rows, s, r]["test"]) for r in rates] for s in seeds]
        for arm in arms
    }
    chosen = {arm: choose(rates, of_arm) for arm, of_arm in found.items()}
    return Scores(
        rows,
        seeds,
        rates,
        tuned={arm: np.array(choice["test"]) for arm, choice in chosen.items()},
        peaks={arm: choice["peaks"] for arm, choice in chosen.items()},
        by_rate={arm: np.array(of_arm)[:, :, 1] for arm, of_arm in found.items()},
    )


def tuned_table(found: Scores) -> str:
    """Test accuracy at the tuned peak, by arm, and its difference to the baseline, paired by seed."""
    head = ["strategy", "test accuracy", "minus uniform", "p", "p, corrected", "peak chosen, median (range)"]
    compared = compare(found.tuned)
    lines = [
        [name, shown(values), *compared[name], peaks_told(found.peaks[name])] for name, values in found.tuned.items()
    ]
    return markdown([f"{found.rows} rows: {head[0]}", *head[1:]], lines)


def grid_table(found: Scores) -> str:
    """Mean test accuracy at each peak rate, and over all of them, which is what one gets without a search."""
    head = [f"{found.rows} rows, at a peak of", *(f"{rate:g}" for rate in found.rates), "mean of all", "minus uniform"]
    over_grid = {name: values.mean(axis=1) for name, values in found.by_rate.items()}
    compared = compare(over_grid)
    lines = [
        [name, *(f"{mean:.3f}" for mean in values.mean(axis=0)), shown(over_grid[name]), compared[name][0]]
        + [compared[name][2]]
        for name, values in found.by_rate.items()
    ]
    return markdown([*head, "p, corrected"], lines)


def difference_table(found: Scores, names: Iterable[str] = ("discriminative", "all three")) -> str:
    """Difference to the baseline at the same peak rate, paired by seed."""
    base = found.by_rate[BASELINE]
    lines = [
        [name, *(shown(column, "+.3f") for column in (found.by_rate[name] - base).T)]
        for name in names
        if name in found.by_rate
    ]
    return markdown([f"{found.rows} rows: minus uniform, at a peak of", *(f"{rate:g}" for rate in found.rates)], lines)


def compare(by_arm: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Of each arm, the difference to the baseline with its interval, the p value, and the corrected one, as text."""
    others = {name: values - by_arm[BASELINE] for name, values in by_arm.items() if name != BASELINE}
    plain = [sign_flip_p(list(differences)) for differences in others.values()]
    told = {
        name: [shown(differences, "+.3f"), f"{p:.3f}", f"{corrected:.3f}"]
        for (name, differences), p, corrected in zip(others.items(), plain, holm(plain), strict=True)
    }
    return {BASELINE: ["", "", ""], **told}


def shown(values: Any, form: str = ".3f") -> str:
    mean, half = interval(list(values))
    return f"{mean:{form}} ± {half:.3f}"


def peaks_told(peaks: Sequence[float]) -> str:
    return f"{np.median(peaks):.2g} ({min(peaks):g} to {max(peaks):g})"


def text(all_scores: Sequence[Scores]) -> str:
    seeds = ", ".join(f"{len(found.seeds)} seeds with {found.rows} rows" for found in all_scores)
    least = 2 / 2 ** min(len(found.seeds) for found in all_scores)
    told = [
        f"{seeds}; {len(all_scores[0].rates)} peak rates. `±` is half of a 95 % interval of the mean (Student's t); p is "
        f"that of an exact paired sign-flip test (at least {least:.2g} here), corrected after Holm for the strategies of "
        "a table.",
        *(tuned_table(found) for found in all_scores),
        "![Test accuracy against the peak rate](images/strategies.svg)",
        *(grid_table(found) for found in all_scores),
        *(difference_table(found) for found in all_scores),
    ]
    return "\n\n".join(told)


# -- The plot ---------------------------------------------------------------------------------------------------------


def draw(all_scores: Sequence[Scores], path: Path) -> None:
    """Draws mean test accuracy against the peak rate with 95 % bands, a panel for each number of rows."""
    with style():
        figure, axes = new_figure(1, len(all_scores), size=(7.2 * len(all_scores), 6.0), layout="constrained")
        for axis, found in zip(axes, all_scores, strict=True):
            for number, (name, values) in enumerate(found.by_rate.items()):
                mean, half = np.array([interval(list(column)) for column in values.T]).T
                line = line_style(number) if number < 7 else {"color": GREY, "linestyle": "-"}
                axis.plot(found.rates, mean, marker="o", markersize=4, label=name, linewidth=2, **line)
                axis.fill_between(found.rates, mean - half, mean + half, color=line["color"], alpha=0.12, linewidth=0)
            axis.set(xscale="log", xlabel="peak learning rate (of the head)", title=f"{found.rows} training rows")
        axes[0].set_ylabel("accuracy on 1,000 test rows")
        axes[-1].legend(loc="lower center", fontsize=11, ncols=2)
        finish(figure, path)


# -- The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    path = options.read or options.json
    cells: list[Cell] = json.loads(path.read_text())["cells"] if path and path.exists() else []
    if not options.read:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # sums in one order, whatever the machine
        wanted = [
            (arm, rows, seed, rate)
            for seed in range(options.seeds)  # the outermost, so that an interrupted run has whole seeds
            for rows in options.rows
            for arm in options.arms
            for rate in options.rates
        ]
        train(wanted, cells, lambda: write(cells, options.json))
    found = [scores(cells, rows) for rows in sorted({cell["rows"] for cell in cells})]
    print(text(found))
    if options.markdown:
        options.markdown.write_text(fill(options.markdown.read_text(), "figures", text(found)))
        folder = options.markdown.parent / "images"
        folder.mkdir(exist_ok=True)
        draw(found, folder / "strategies")
    return 0


def write(cells: Sequence[Cell], path: Path | None) -> None:
    if path:
        lines = ",\n".join(json.dumps(cell) for cell in cells)
        with replacing(path) as temporary:
            temporary.write_text(f'{{"cells": [\n{lines}\n]}}\n', encoding="utf-8")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", choices=EPOCHS, default=[*EPOCHS], help="to train on")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="peak rates to try")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=8, help="splits of the digits, at most 20")
    parser.add_argument("--json", type=Path, help="file for every training; what is in it is not trained again")
    parser.add_argument("--from", type=Path, dest="read", help="a file that `--json` wrote: nothing is trained")
    parser.add_argument("--markdown", type=Path, help="page to put the tables into; the plot goes to images/ beside it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
