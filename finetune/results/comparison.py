"""Runs beside each other: where recipes differ, seeds averaged, and pairs on the same test rows. Plain data only.

References:
    Dietterich (1998), Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms
    (McNemar's test); Efron & Tibshirani (1993), An Introduction to the Bootstrap (paired draws).
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.errors import FinetuneError, reason
from finetune.machine_failures import raise_machine_failure
from finetune.plain_shapes import as_written
from finetune.results.report.run_files import RunFiles
from finetune.results.run_documents import read_recipe_of_run

_DRAWS = 2000
_MOST_PAIRS = 45  # of ten runs
_MOST_DRAWN = 2**24  # values
# Two-sided 95 % quantiles of Student's t by the degrees of freedom, from 1 on.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class RunPair:
    """Two runs on the same test rows.

    Attributes:
        first: The folder of one run.
        second: The folder of the other.
        output: Name of the output; empty for the only one.
        measure: What is compared: `share of rows that are right` or `mean absolute error`.
        values: The measure of the first and of the second.
        difference: The measure of the second less that of the first.
        interval: Its 95 % interval, by drawing test rows again, the same for both.
        p_value: Of McNemar's exact test that both are right equally often; `None` for numbers.
    """

    first: Path
    second: Path
    output: str
    measure: str
    values: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float | None


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seeds alone.

    Attributes:
        folders: Their folders.
        metrics: Mean, lower and upper end of its 95 % interval (Student's t over the seeds), by metric.
    """

    folders: tuple[Path, ...]
    metrics: Mapping[str, tuple[float, float, float]]


def recipe_differences(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Returns the keys in which the recipes differ, each with its value in every run.

    Args:
        runs: The files of the runs.
    """
    flat = [dict(_flat(read_recipe_of_run(run.folder / "recipe.yaml", run.recipe))) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = {key: [_as_written(each.get(key, "")) for each in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)  # `true`, as in the recipe


def seed_groups(runs: Sequence[RunFiles]) -> list[SeedGroup]:
    """Returns the groups of runs whose recipes differ in their seeds alone; runs without such a partner are left out.

    Args:
        runs: The files of the runs.
    """
    groups: dict[str, list[RunFiles]] = {}
    seeds: dict[str, list[Any]] = {}
    for run in runs:
        recipe = read_recipe_of_run(run.folder / "recipe.yaml", run.recipe)
        seed = recipe.pop("seed", None)
        key = yaml.safe_dump(recipe, sort_keys=False)
        members = groups.setdefault(key, [])
        if run.result and seed not in seeds.setdefault(key, []):
            members.append(run)
            seeds[key].append(seed)
    return [_averaged(members) for members in groups.values() if len(members) > 1]


def pairs_of(runs: Sequence[RunFiles]) -> Iterator[RunPair]:
    """Yields every pair of runs that were tested on the same rows, for each output.

    Args:
        runs: The files of the runs, of which those without predictions are left out.
    """
    known = [(run, _predictions(run.folder / "predictions.npz")) for run in runs if run.report.get("test_rows")]
    pairs = [(a, b) for a, b in combinations(known, 2) if a[0].report["test_rows"] == b[0].report["test_rows"]]
    for (first, ours), (second, theirs) in pairs[:_MOST_PAIRS]:
        for output in ours:
            with as_written(f"{first.folder}` or `{second.folder}", "predictions.npz", "Copy the whole folders again."):
                fits = output in theirs and _fit(ours[output], theirs[output])
                pair = _pair(first, second, output, ours[output], theirs[output]) if fits else None
            if pair:
                yield pair


def _pair(
    first: RunFiles, second: RunFiles, output: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> RunPair:
    rows, other_rows = _of_rows(ours), _of_rows(theirs)
    is_numbers = str(ours["kind"]) == "numbers"
    low, high = _paired_interval(other_rows - rows)
    gained, lost = int((other_rows > rows).sum()), int((other_rows < rows).sum())
    return RunPair(
        first=first.folder,
        second=second.folder,
        output=output,
        measure="mean absolute error" if is_numbers else "share of rows that are right",
        values=(float(rows.mean()), float(other_rows.mean())),
        difference=float((other_rows - rows).mean()),
        interval=(low, high),
        p_value=None if is_numbers else mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Returns how likely so unequal counts are where both runs are right equally often (exact, two-sided).

    >>> round(mcnemar(8, 1), 4), mcnemar(0, 0)
    (0.0391, 1.0)

    Args:
        gained: Rows that only the second run has right.
        lost: Rows that only the first run has right.
    """
    count, least = gained + lost, min(gained, lost)
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * sum(math.exp(log - count * math.log(2)) for log in logs))


def _paired_interval(differences: np.ndarray) -> tuple[float, float]:
    generator, count = np.random.default_rng(0), len(differences)
    at_once = max(1, _MOST_DRAWN // count)
    means = [
        differences[generator.integers(0, count, (min(at_once, _DRAWS - start), count))].mean(axis=1)
        for start in range(0, _DRAWS, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def _of_rows(of: Mapping[str, Any]) -> np.ndarray:
    """Returns whether each row is right, or how far off it is."""
    kind, targets, scores = str(of["kind"]), of["targets"], of["scores"]
    if kind == "classes":
        return (scores.argmax(axis=1) == targets).astype(np.float64)
    if kind == "labels":
        return ((scores > float(of["threshold"])) == targets).all(axis=1).astype(np.float64)
    return np.abs(scores - targets).mean(axis=1)


def _fit(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    is_same = str(ours["kind"]) == str(theirs["kind"]) and ours["targets"].shape == theirs["targets"].shape
    return is_same and bool((ours["targets"] == theirs["targets"]).all())


def _predictions(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the arrays of each output by its name."""
    if not path.is_file():
        return {}
    outputs: dict[str, dict[str, Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                output, _, part = name.rpartition("/")
                if part != "rows":
                    outputs.setdefault(output, {})[part] = arrays[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise_machine_failure(error, f"reading `{path}`")
        raise FinetuneError(
            f"The files of a run folder are read as the run wrote them. `{path}` cannot be: {reason(error)}. Copy the "
            "whole folder again."
        ) from error
    return outputs


def _averaged(runs: Sequence[RunFiles]) -> SeedGroup:
    metrics, count = {}, len(runs)
    for name in runs[0].result["metrics"]:
        values = [run.result["metrics"].get(name) for run in runs]
        if None in values:
            continue
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
        quantile = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96 + 2.5 / (count - 1)
        half = quantile * spread / math.sqrt(count)
        metrics[name] = (mean, mean - half, mean + half)
    return SeedGroup(tuple(run.folder for run in runs), metrics)


def _flat(data: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns the values of nested mappings and lists by their dotted keys; groups and the like by their names."""
    if isinstance(data, Mapping):
        items = list(data.items())
    elif isinstance(data, list):
        items = [(each.get("name", n) if isinstance(each, Mapping) else n, each) for n, each in enumerate(data)]
    else:
        return [(prefix, data)]
    return [pair for key, value in items for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
