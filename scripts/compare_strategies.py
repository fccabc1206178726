#!/usr/bin/env python3
"""Compares strategies of fine-tuning on the digits example, with intervals, paired tests and a plot.

Every strategy gets the same optimizer (AdamW), the same number of steps and the same search: on each seed (split of the
digits, fresh head, order of the batches) it is trained at every peak rate; the rate with the best accuracy on 400
validation rows is chosen, and its accuracy on 1,000 test rows counts. Every training is a line of a JSON file, which is
written while it runs: a training that is in the file is not repeated.

    python scripts/compare_strategies.py --json strategies.json                                  # train, or continue
    python scripts/compare_strategies.py --from strategies.json --markdown docs/strategies.md    # tables and plot alone
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from compare_digits import HEAD, MIDDLE, STEM, TOP, WEIGHTS
from plot_step import fill
from strategy_tables import BASELINE, Cell, Key, draw, key_of, scores, text

import finetune
from finetune.build.data import RunLength
from finetune.build.rates import build_rate
from finetune.data.examples import Examples
from finetune.examples.digits import small_cnn, uci_digits
from finetune.recipe.phase_strategies import STRATEGIES, written_out
from finetune.results.run_folder import replacing

GROUPS = {"stem": STEM, "middle": MIDDLE, "top": TOP, "head": HEAD}  # input to output
BATCH_SIZE, STEPS_PER_EPOCH = 20, 5  # a smaller training set is repeated until it fills five batches
EPOCHS = {20: 12, 100: 20}  # by training rows
RATES = {20: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 100: (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}  # no best rate at an edge
VALIDATION_ROWS = 400


# -- What is compared -------------------------------------------------------------------------------------------------


def shipped(strategy: str, peak: float, epochs: int) -> list[finetune.Phase]:
    """Returns the phases of `phases: <strategy>` in a recipe, with the rates and schedules that it sets.

    Args:
        strategy: Name of the strategy in the recipe.
        peak: Peak rate of all groups.
        epochs: Length of the run.
    """
    peaks = dict.fromkeys(GROUPS, peak)
    phases = []
    for phase in written_out(STRATEGIES[strategy](strategy=strategy), peaks, epochs):
        length = RunLength(phase.epochs or 0, STEPS_PER_EPOCH)
        rates = {name: build_rate(rate, length) for name, rate in phase.rates.items()}
        if phase.clock == "phase" and not rates:  # the schedule of the groups starts again in every phase
            rates = dict.fromkeys(GROUPS if phase.train == "all" else phase.train, decayed(peak, length.steps))
        phases.append(finetune.Phase(phase.train, epochs=phase.epochs, rates=rates, clock=phase.clock))
    return phases


def gradual_alone(peak: float, epochs: int) -> list[finetune.Phase]:
    """Returns gradual unfreezing alone: one schedule and one rate for all groups, as without phases."""
    return [finetune.Phase(phase.train, epochs=phase.epochs) for phase in shipped("gradual_unfreezing", peak, epochs)]


@dataclass(frozen=True)
class Arm:
    """A strategy to compare.

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
    """Returns the schedule of `recipes/digits.yaml`: half the rate after every quarter of the run."""
    return finetune.exponential_decay(rate, decay_steps=max(steps // 4, 1), decay_rate=0.5, staircase=True)


# -- Training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """A compiled network that is trained again and again from a starting point."""

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
        """Trains from the starting point and returns the weights.

        Args:
            examples: The rows to train on.
            peak: Peak rate of the last group; the others keep their ratio to it.
            seed: Of the fresh weights and the order of the batches.
        """
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
    """Returns the weights that a training with this seed starts from."""
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
        """Trains once and judges the result.

        Args:
            name: The strategy, one of `ARMS`.
            rows: Training rows.
            seed: Of the split, the fresh weights and the order of the batches.
            peak: Peak rate of the last group.
        """
        arm = ARMS[name]
        trainer = self.trainers.get((name, rows)) or Trainer(arm, rows)
        if not arm.phases:  # phases are compiled again whatever is kept: their schedules differ
            self.trainers[name, rows] = trainer
        examples = digits(rows, seed)
        self.judge.set_weights(trainer.fit(examples, peak, seed))
        scores = {
            "validation": self.accuracy(examples.x_validation, examples.y_validation),
            "test": self.accuracy(examples.x_test, examples.y_test),
        }
        return {"arm": name, "rows": rows, "seed": seed, "peak": peak, **scores}

    def accuracy(self, x: Any, y: Any) -> float:
        """Returns the share of rows that are classified correctly."""
        return round(float(np.mean(self.judge.predict_on_batch(x).argmax(-1) == y)), 4)


@functools.lru_cache(maxsize=4)
def digits(rows: int, seed: int) -> Examples:
    """Returns a split of the digits."""
    return uci_digits(rows, validation_rows=VALIDATION_ROWS, seed=seed)


def train(keys: Sequence[Key], cells: list[Cell], save: Callable[[], None]) -> None:
    """Trains what is missing among the cells; saves every half minute, and at the end.

    Args:
        keys: The trainings that are needed.
        cells: Those that are finished; new ones are appended.
        save: Writes the cells to their file.
    """
    runner, start, saved = Runner(), time.monotonic(), time.monotonic()
    missing = [key for key in keys if key not in {key_of(cell) for cell in cells}]
    try:
        for number, key in enumerate(missing, start=1):
            cells.append(runner.cell(*key))
            if time.monotonic() - saved > 30:
                save()
                saved = time.monotonic()
                print(f"{saved - start:5.0f} s  {number} of {len(missing)}: {cells[-1]}", file=sys.stderr, flush=True)
    finally:
        save()


# -- The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is missing, and prints or writes the tables and the plot."""
    options = parse_options(arguments)
    path = options.read or options.json
    cells: list[Cell] = json.loads(path.read_text())["cells"] if path and path.exists() else []
    if not options.read:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # sums in one order, whatever the machine
        keys = [
            (arm, rows, seed, rate)
            for seed in range(options.seeds)  # the outermost, so that an interrupted run has whole seeds
            for rows in options.rows
            for arm in options.arms
            for rate in options.rates or RATES[rows]
        ]
        train(keys, cells, lambda: write(cells, options.json))
    all_scores = [scores(cells, rows) for rows in sorted({cell["rows"] for cell in cells})]
    print(text(all_scores))
    if options.markdown:
        options.markdown.write_text(fill(options.markdown.read_text(), "figures", text(all_scores)))
        folder = options.markdown.parent / "images"
        folder.mkdir(exist_ok=True)
        draw(all_scores, folder / "strategies")
    return 0


def write(cells: Sequence[Cell], path: Path | None) -> None:
    """Writes all cells to a JSON file, one a line."""
    if path:
        lines = ",\n".join(json.dumps(cell) for cell in cells)
        with replacing(path) as temporary:
            temporary.write_text(f'{{"cells": [\n{lines}\n]}}\n', encoding="utf-8")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", choices=EPOCHS, default=[*EPOCHS], help="to train on")
    parser.add_argument("--rates", type=float, nargs="+", help="peak rates to try")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=8, help="splits of the digits, at most 20")
    parser.add_argument("--json", type=Path, help="file for every training; a training in it is not repeated")
    parser.add_argument("--from", type=Path, dest="read", help="a file that `--json` wrote: nothing is trained")
    parser.add_argument("--markdown", type=Path, help="page to put the tables into; the plot goes to images/ beside it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
