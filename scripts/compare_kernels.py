#!/usr/bin/env python3
"""Compares the scores of runs with `exact` and with `native` kernels: the same recipe, seed by seed.

Every run is a process of its own, `finetune run RECIPE --set seed=N --set train.kernels=KERNELS`. What differs between
the two runs of a seed is rounding alone, which training amplifies as it amplifies another order of the batches. So the
differences of a metric are set beside its spread over the seeds: kernels that changed the mathematics would shift the
scores by more than that. Exits with 1 where the mean difference is larger than two standard errors and than a tenth of
that spread.

    python scripts/compare_kernels.py                                       # recipes/digits.yaml, in 5 minutes
    python scripts/compare_kernels.py recipes/digits.yaml recipes/movie_sentences.yaml --json scores.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "digits.yaml"
KERNELS = ("exact", "native")
ENOUGH = 0.1  # of the spread over the seeds: what is smaller decides nothing


@dataclass(frozen=True)
class Comparison:
    """A metric of the test rows with both kinds of kernels.

    Attributes:
        recipe: Name of the recipe.
        metric: Name of the metric.
        exact: Its value for each seed with the kernels of Keras.
        native: Its value for each seed with those of TensorFlow.
    """

    recipe: str
    metric: str
    exact: tuple[float, ...]
    native: tuple[float, ...]

    @property
    def differences(self) -> list[float]:
        return [ours - theirs for ours, theirs in zip(self.native, self.exact, strict=True)]

    @property
    def is_noise(self) -> bool:
        """Whether the kernels cannot be told apart by this metric."""
        mean = abs(statistics.mean(self.differences))
        error = statistics.stdev(self.differences) / len(self.differences) ** 0.5
        return mean <= max(2 * error, ENOUGH * statistics.stdev(self.exact))


def scores(recipe: Path, seed: int, kernels: str, options: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of a run on its test rows. Exits if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        changes = [f"seed={seed}", f"train.kernels={kernels}", *options]
        command = [sys.executable, "-m", "finetune", "run", str(recipe), "--out", str(out)]
        command += [part for change in changes for part in ("--set", change)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
        result = json.loads((out / "result.json").read_text())
    if (result["kernels"] == "exact") != (kernels == "exact"):
        raise SystemExit(f"`{recipe}` ran {result['kernels']} with `train.kernels={kernels}`.")
    return result["metrics"]


def compare(recipe: Path, seeds: int, options: Sequence[str]) -> list[Comparison]:
    """Runs a recipe with both kinds of kernels for seeds from 1 on."""
    runs: dict[str, list[dict[str, float]]] = {kernels: [] for kernels in KERNELS}
    for seed in range(1, seeds + 1):
        for kernels in KERNELS:
            runs[kernels].append(scores(recipe, seed, kernels, options))
            print(recipe.stem, seed, kernels, runs[kernels][-1], file=sys.stderr)
    metrics = runs["exact"][0]
    columns = {name: [tuple(run[name] for run in runs[kernels]) for kernels in KERNELS] for name in metrics}
    return [Comparison(recipe.stem, name, exact, native) for name, (exact, native) in columns.items()]


def table(comparisons: Sequence[Comparison]) -> str:
    rows = [
        "| recipe | metric | `exact` | `native` | mean difference | its standard error |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for each in comparisons:
        of_runs = (
            f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}" for values in (each.exact, each.native)
        )
        error = statistics.stdev(each.differences) / len(each.differences) ** 0.5
        difference = f"{statistics.mean(each.differences):+.5f} | {error:.5f}"
        rows.append(f"| {each.recipe} | {each.metric} | {' | '.join(of_runs)} | {difference} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=[RECIPE], help="default: recipes/digits.yaml")
    parser.add_argument("--seeds", type=int, default=5, help="how many, >= 2 (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], dest="options", help="a change to the recipes")
    parser.add_argument("--json", type=Path, help="where to write the scores")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds is at least 2")
    comparisons = [each for recipe in options.recipes for each in compare(recipe, options.seeds, options.options)]
    print(table(comparisons))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in comparisons], indent=1) + "\n")
    return 0 if all(each.is_noise for each in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
