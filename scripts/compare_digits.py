#!/usr/bin/env python3
"""Compares ways of fine-tuning on the digits example: from scratch, head only, uniform and discriminative rates.

Every way gets the same number of batches, the same decay and the same search: the peak rate is the one of `--rates` with
the best accuracy on validation rows, over splits that are not reported. Reported are the mean and the standard deviation
of the accuracy on 1,000 test rows over `--seeds` other splits and initial heads. Takes about ten minutes on two cores.

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
from finetune.examples.digits import small_cnn, uci_digits
from finetune.sources.data import Examples

WEIGHTS = Path(__file__).resolve().parent.parent / "recipes" / "weights" / "mnist_cnn.weights.h5"
STEM, MIDDLE, TOP, HEAD = ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("head",)
BATCH_SIZE, STEPS_PER_EPOCH, EPOCHS = 20, 5, 20
FIRST_SEARCH_SEED = 1000


def adamw(rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(decayed(rate), weight_decay=0.01)


def sgd(rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(decayed(rate), momentum=0.9)


def decayed(rate: float) -> keras.optimizers.schedules.LearningRateSchedule:
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
        {"stem": Group(STEM), "body": Group(MIDDLE + TOP, sgd, 1 / 3), "head": Group(HEAD, adamw)}
    ),
}


class Trainer:
    """One compiled network, trained over and over from its starting point."""

    def __init__(self, way: Way):
        self.restored = way.restored
        self.model = small_cnn()
        selectors = [
            finetune.Selector(name, prefixes=group.layers, frozen=group.optimizer is None)
            for name, group in way.groups.items()
        ]
        found = finetune.resolve_groups(self.model, selectors)
        finetune.freeze(self.model, found)
        pairs = zip(found, way.groups.values(), strict=True)
        self.optimizer = finetune.GroupedOptimizer(
            {members.name: (group.optimizer(group.rate), members) for members, group in pairs if group.optimizer}
        )
        self.optimizer.build(self.model.trainable_variables)
        self.fresh = [np.array(variable) for variable in self.optimizer.variables]
        self.model.compile(self.optimizer, loss="sparse_categorical_crossentropy")

    def fit(self, examples: Examples, peak: float, seed: int) -> Callable[[np.ndarray, np.ndarray], float]:
        """Trains afresh; returns a function that measures accuracy."""
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
        return lambda x, y: accuracy(self.model, x, y)


def main() -> None:
    options = parse_options()
    tf.config.experimental.enable_op_determinism()
    start, results = time.monotonic(), []
    for name, way in WAYS.items():
        trainer = Trainer(way)
        for rows in options.rows:
            results.append({"way": name, "rows": rows} | measure(trainer, rows, options))
            print(f"{time.monotonic() - start:5.0f} s  {results[-1]}", file=sys.stderr, flush=True)
    untrained = {"as pretrained, nothing trained": pretrained_accuracies(options.seeds)}
    print(table(results, untrained, options.rows))
    if options.json:
        told = {"results": results, "untrained": untrained, "seeds": options.seeds, "epochs": EPOCHS}
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def measure(trainer: Trainer, rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Searches the peak rate on validation rows, then measures on test rows; the splits of the two differ."""
    searched = {peak: validate(trainer, rows, peak, options.search_seeds) for peak in options.rates}
    peak = max(searched, key=lambda rate: searched[rate])
    test = []
    for seed in range(options.seeds):
        examples = uci_digits(rows, seed=seed)
        test.append(trainer.fit(examples, peak, seed)(examples.x_test, examples.y_test))
    return {"peak": peak, "validation": searched, "test": test}


def validate(trainer: Trainer, rows: int, peak: float, seeds: int) -> float:
    found = []
    for seed in range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + seeds):
        examples = uci_digits(rows, validation_rows=400, seed=seed)
        found.append(trainer.fit(examples, peak, seed)(examples.x_validation, examples.y_validation))
    return round(statistics.mean(found), 4)


def pretrained_accuracies(seeds: int) -> list[float]:
    model = small_cnn()
    finetune.restore(model, WEIGHTS)
    return [
        accuracy(model, examples.x_test, examples.y_test) for examples in (uci_digits(seed=s) for s in range(seeds))
    ]


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return round(float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) == y)), 4)


def table(results: list[dict], untrained: Mapping[str, list[float]], sizes: list[int]) -> str:
    """Returns the results as a Markdown table, one line for each way."""
    lines = [["", *(f"{rows} training rows" for rows in sizes)], ["---"] * (len(sizes) + 1)]
    lines += [[name, *[spread(found)] * len(sizes)] for name, found in untrained.items()]
    for name in WAYS:
        cells = [next(r for r in results if r["way"] == name and r["rows"] == rows) for rows in sizes]
        lines.append([name, *(f"{spread(cell['test'])} (peak {cell['peak']:g})" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", choices=[5, 10, 20, 50, 100], default=[20, 100], help="to train on"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2], help="peak rates to try")
    parser.add_argument("--search-seeds", type=int, default=2, help="splits to search on")
    parser.add_argument("--seeds", type=int, default=5, help="splits to report")
    parser.add_argument("--json", type=Path, help="file for every figure")
    return parser.parse_args()


if __name__ == "__main__":
    main()
