#!/usr/bin/env python3
"""Compares ways of fine-tuning on the digits example: from scratch, head only, uniform and discriminative rates.

Every way gets the same number of batches, the same decay and the same search: on each split of the digits it is trained
with every peak rate; the rate with the best accuracy on 400 validation rows is chosen, and its accuracy on 1,000 test
rows counts. Reported are mean and standard deviation over the splits. Takes about 15 minutes on two quiet cores.

    python scripts/compare_digits.py
    python scripts/compare_digits.py --rows 20 --seeds 10 --json comparison.json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import finetune
from finetune.data.examples import Examples
from finetune.examples.digits import small_cnn, uci_digits

WEIGHTS = Path(__file__).resolve().parent.parent / "recipes" / "weights" / "mnist_cnn.weights.h5"
STEM, MIDDLE, TOP, HEAD = ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("head",)
BATCH_SIZE, STEPS_PER_EPOCH, EPOCHS = 20, 5, 20


def adamw(rate: float) -> keras.optimizers.Optimizer:
    """Returns AdamW at the decaying rate."""
    return keras.optimizers.AdamW(decayed(rate), weight_decay=0.01)


def sgd(rate: float) -> keras.optimizers.Optimizer:
    """Returns SGD with momentum at the decaying rate."""
    return keras.optimizers.SGD(decayed(rate), momentum=0.9)


def decayed(rate: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule of all ways: half the rate after every quarter of the run."""
    return finetune.exponential_decay(rate, decay_steps=5 * STEPS_PER_EPOCH, decay_rate=0.5, staircase=True)


@dataclass(frozen=True)
class Group:
    """Layers that share an optimizer and a rate, relative to the peak; without an optimizer they are frozen."""

    layers: tuple[str, ...]
    optimizer: Callable[[float], keras.optimizers.Optimizer] | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class Way:
    """A way of training: its groups, and whether the pretrained weights are restored below the head."""

    groups: Mapping[str, Group]
    restored: bool = True


RATES = finetune.discriminative_rates(1.0, 4, decay=2.6)
WAYS = {
    "from scratch": Way({"all": Group(STEM + MIDDLE + TOP + HEAD, adamw)}, restored=False),
    "head only": Way({"body": Group(STEM + MIDDLE + TOP), "head": Group(HEAD, adamw)}),
    "one rate for all layers": Way({"all": Group(STEM + MIDDLE + TOP + HEAD, adamw)}),
    "discriminative: 1/2.6 per group": Way(
        {
            f"group_{i}": Group(layers, adamw, rate)
            for i, (layers, rate) in enumerate(zip((STEM, MIDDLE, TOP, HEAD), RATES, strict=True))
        }
    ),
    "discriminative: the recipe's groups": Way(
        {"stem": Group(STEM), "body": Group(MIDDLE + TOP, sgd, 0.3), "head": Group(HEAD, adamw)}
    ),
}


class Trainer:
    """A compiled network that is trained again and again from its starting point."""

    def __init__(self, way: Way):
        self.restored = way.restored
        self.model = small_cnn()
        selectors = [
            finetune.Selector(name, prefixes=group.layers, frozen=group.optimizer is None)
            for name, group in way.groups.items()
        ]
        groups = finetune.resolve_groups(self.model, selectors)
        finetune.freeze(self.model, groups)
        pairs = zip(groups, way.groups.values(), strict=True)
        self.optimizer = finetune.GroupedOptimizer(
            {members.name: (group.optimizer(group.rate), members) for members, group in pairs if group.optimizer}
        )
        self.optimizer.build(self.model.trainable_variables)
        self.fresh = [keras.ops.convert_to_numpy(variable) for variable in self.optimizer.variables]
        self.model.compile(self.optimizer, loss="sparse_categorical_crossentropy")

    def fit(self, examples: Examples, peak: float, seed: int) -> tuple[float, float]:
        """Trains from the starting point.

        Args:
            examples: Training, validation and test rows.
            peak: Peak rate of the last group; the others keep their ratio to it.
            seed: Of the fresh weights and the order of the batches.

        Returns:
            The accuracy on the validation rows and on the test rows.
        """
        keras.utils.set_random_seed(seed)
        start = small_cnn()
        if self.restored:
            finetune.restore(start, WEIGHTS, exclude=["head"])
        self.model.set_weights(start.get_weights())
        self.optimizer.set_weights(self.fresh)
        self.optimizer.learning_rate = peak  # of the last group; the others keep their ratio to it
        repeats = STEPS_PER_EPOCH * BATCH_SIZE // len(examples.x_train)
        x, y = np.tile(examples.x_train, (repeats, 1, 1, 1)), np.tile(examples.y_train, repeats)
        self.model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
        assert examples.x_validation is not None
        assert examples.y_validation is not None
        return (
            accuracy(self.model, examples.x_validation, examples.y_validation),
            accuracy(self.model, examples.x_test, examples.y_test),
        )


def main() -> None:
    """Trains every way on every split, and prints the tables."""
    options = parse_options()
    tf.config.experimental.enable_op_determinism()
    start, results = time.monotonic(), []
    for name, way in WAYS.items():
        trainer = Trainer(way)
        for rows in options.rows:
            results.append({"way": name, "rows": rows} | measure(trainer, rows, options.rates, range(options.seeds)))
            print(f"{time.monotonic() - start:5.0f} s  {name}, {rows} rows: {results[-1]['test']}", file=sys.stderr)
    results += [{"way": "as pretrained", "rows": rows, "test": untrained(options.seeds)} for rows in options.rows]
    print(table(results, options.rows), by_rate(results), sep="\n\n")
    if options.json:
        content = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seeds": options.seeds, "results": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(trainer: Trainer, rows: int, rates: list[float], seeds: range) -> dict[str, list]:
    """Trains at every peak rate on a split for every seed; returns what `choose` returns."""
    splits = [(uci_digits(rows, validation_rows=400, seed=seed), seed) for seed in seeds]
    return choose(rates, [[trainer.fit(examples, rate, seed) for rate in rates] for examples, seed in splits])


def choose(rates: list[float], accuracies: list[list[tuple[float, float]]]) -> dict[str, list]:
    """Chooses a rate for each split by its validation rows alone, and takes the accuracy at that rate on its test rows.

    Args:
        rates: Peak rates.
        accuracies: For each split, for each rate, the accuracy on validation rows and on test rows.

    Returns:
        `peaks` and `test`, one entry for each split; `by_rate`, mean accuracy on test rows at each rate.
    """
    best = [max(range(len(rates)), key=lambda i, split=split: split[i][0]) for split in accuracies]
    means = [round(statistics.mean(split[i][1] for split in accuracies), 4) for i in range(len(rates))]
    return {
        "peaks": [rates[i] for i in best],
        "test": [split[i][1] for split, i in zip(accuracies, best, strict=True)],
        "by_rate": [{"peak": rate, "test": mean} for rate, mean in zip(rates, means, strict=True)],
    }


def untrained(seeds: int) -> list[float]:
    """Returns the accuracy of the pretrained network with the pretrained head, on each split."""
    model = small_cnn()
    finetune.restore(model, WEIGHTS)
    splits = [uci_digits(seed=seed) for seed in range(seeds)]
    return [accuracy(model, split.x_test, split.y_test) for split in splits]


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of rows that are classified correctly."""
    return round(float(np.mean(model.predict(x, batch_size=200, verbose=0).argmax(-1) == y)), 4)


def table(results: list[dict], sizes: list[int]) -> str:
    """Returns test accuracy as a Markdown table: a line for each way, a column for each number of rows."""
    cells = {(result["way"], result["rows"]): spread(result["test"]) for result in results}
    lines = [[name, *(cells[name, rows] for rows in sizes)] for name in ("as pretrained", *WAYS)]
    return markdown(["test accuracy", *(f"{rows} rows" for rows in sizes)], lines)


def by_rate(results: list[dict]) -> str:
    """Returns mean test accuracy as a Markdown table with a column for each peak rate."""
    trained = [result for result in results if result["way"] in WAYS]
    lines = [
        [f"{result['way']}, {result['rows']} rows", *(f"{column['test']:.3f}" for column in result["by_rate"])]
        for result in sorted(trained, key=lambda result: result["rows"])
    ]
    return markdown(["at a peak rate of", *(f"{column['peak']:g}" for column in trained[0]["by_rate"])], lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def spread(values: list[float]) -> str:
    """Returns mean and standard deviation as text: `0.912 ± 0.004`."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", choices=[5, 10, 20, 50, 100], default=[20, 100], help="to train on"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2], help="peak rates to try"
    )
    parser.add_argument("--seeds", type=int, default=5, help="splits of the digits")
    parser.add_argument("--json", type=Path, help="file for every figure")
    return parser.parse_args()


if __name__ == "__main__":
    main()
