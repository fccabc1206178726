#!/usr/bin/env python3
"""Judges the LR range test: its suggestion against real short trainings at many rates, on the shipped recipes.

For each case and each of three seeds (of the network, the data split and the batches) the test suggests a rate; then
the recipe is run as it is at each of the rates of a grid and at the suggested one, all groups keeping their ratios.

python scripts/compare_lr_range.py                # the table, in Markdown
python scripts/compare_lr_range.py --json FILE    # everything measured, too
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune.build.data import precision
from finetune.build.layout import build_layout
from finetune.commands.lr_range import Range, lr_range
from finetune.recipe.loader import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SEEDS = (0, 1, 2)
GRID = tuple(float(f"{rate:.2e}") for rate in np.geomspace(1e-4, 1.0, 9))  # of the last group
ADAM = "{schedule: exponential_decay, initial: 1e-3, decay_epochs: 5, decay_rate: 0.5, staircase: true}"
CASES = {
    "digits.yaml": ("digits.yaml", []),
    "the same, all groups AdamW, 1/2.6 per layer": (
        "digits.yaml",
        ["groups={by: layer, peak: 1e-3, decay: 2.6, optimizer: adamw}"],
    ),
    "the same, one group, SGD with momentum": (
        "digits.yaml",
        ["groups=[{name: all, rest: true, optimizer: {name: sgd, momentum: 0.9}, learning_rate: 1e-3}]"],
    ),
    "the same, head only, Adam": (
        "digits.yaml",
        [
            "groups=[{name: body, prefixes: [conv1, bn1, conv2, bn2, conv3, bn3], frozen: true},"
            f" {{name: head, rest: true, optimizer: adam, learning_rate: {ADAM}}}]"
        ],
    ),
}


def main() -> None:
    """Prints the table while it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    arguments = parser.parse_args()
    print("| recipe | suggested | best of the grid | off by | score: suggested | best | lost | `--each` |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    results = {name: judge(name, RECIPES / file, overrides) for name, (file, overrides) in CASES.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


def judge(name: str, recipe: Path, overrides: list[str]) -> dict:
    """Measures a case, prints its line of the table and returns everything measured."""
    seeded = [[*overrides, f"seed={seed}", f"data.arguments.seed={seed}"] for seed in SEEDS]
    suggested = [suggestion(recipe, more, Range(repeats=5)) for more in seeded]
    each = [suggestion(recipe, more, Range(each=True)) for more in seeded]
    grid = {rate: [score(recipe, more, rate) for more in seeded] for rate in GRID}
    followed = [score(recipe, more, last(rates)) for more, rates in zip(seeded, suggested, strict=True)]
    alone = [score(recipe, more, rates) for more, rates in zip(seeded, each, strict=True)]
    best = max(GRID, key=lambda rate: np.mean(grid[rate]))
    rates = [last(rates) for rates in suggested]
    middle = float(np.exp(np.mean(np.log(rates))))
    suggestions, off = " / ".join(f"{rate:.1e}" for rate in rates), max(middle / best, best / middle)
    print(
        f"| {name} | {suggestions} | {best:.1e} | {off:.1f}x "
        f"| {shown(followed)} | {shown(grid[best])} | {np.mean(grid[best]) - np.mean(followed):+.3f} "
        f"| {shown(alone)} |",
        flush=True,
    )
    return {"suggested": suggested, "each": each, "grid": grid, "followed": followed, "followed_each": alone}


def suggestion(recipe: Path, overrides: list[str], settings: Range) -> dict[str, float]:
    """Returns the rate that the range test suggests for each group."""
    return lr_range(recipe, settings, overrides=overrides).learning_rates


def last(rates: dict[str, float]) -> float:
    """Returns the rate of the last group, from which the others keep their ratios."""
    return list(rates.values())[-1]


def score(recipe: Path, overrides: list[str], rates: float | dict[str, float]) -> float:
    """Returns the test accuracy of a training as the recipe says, at other rates.

    Args:
        recipe: The recipe file.
        overrides: Changes to it, as `--set` takes them.
        rates: The peak rate of the last group, from which the others keep their ratios, or the peak of each group.
    """
    loaded = load_recipe(recipe, overrides=overrides)
    with precision(loaded):
        layout = build_layout(loaded)
        optimizer: Any = layout.model.optimizer
        if not isinstance(rates, dict):
            rates = {name: rates * peak / last(layout.peaks) for name, peak in layout.peaks.items()}
        for child in optimizer.group_optimizers.values():
            child.learning_rate = rates.get(child.name, layout.peaks[child.name])
        data, train = layout.examples, loaded.train
        layout.model.fit(data.x_train, data.y_train, epochs=train.epochs, batch_size=train.batch_size, verbose=0)
        return layout.model.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0, return_dict=True)["accuracy"]


def shown(scores: list[float]) -> str:
    """Returns both as text: `0.912 ± 0.004`."""
    return f"{np.mean(scores):.3f} ± {np.std(scores):.3f}"


if __name__ == "__main__":
    main()
