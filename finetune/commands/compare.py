"""`finetune compare`: runs beside each other, as a table and as a page, without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.results.comparison import RunPair, SeedGroup, pairs_of, recipe_differences, seed_groups
from finetune.results.report.figures import as_points, line_chart
from finetune.results.report.markup import Markup, element, table
from finetune.results.report.page import page_of
from finetune.results.report.run_files import RunFiles, read_run
from finetune.results.report.verdict import interval_text
from finetune.results.run_folder import check_holds_run, write_text

Rows = list[tuple[str, ...]]
_MOST_DIFFERENCES = 40


def compare(folders: Sequence[str | Path], *, out: Path | None = None) -> list[tuple[str, tuple[str, ...], Rows]]:
    """Compares runs.

    Args:
        folders: Their run folders, at least two; a folder of runs, such as `--seeds` makes, stands for all in it.
        out: A page to write.

    Returns:
        Tables: of each the title, the heads of its columns, and its rows.

    Raises:
        FinetuneError: There are fewer than two runs, or a folder holds none.
    """
    paths = [inner for folder in folders for inner in runs_in(Path(folder))]
    paths = list(dict.fromkeys(paths))
    for path in paths:
        check_holds_run(path, "A comparison is of runs.")
    if len(paths) < 2:
        raise FinetuneError(
            f"A comparison is of two runs or more. Received {len(paths)}. Name run folders, or a folder that holds "
            "some."
        )
    runs = [read_run(path) for path in paths]
    tables = [_results(runs), *_seeds(seed_groups(runs)), *_pairs(list(pairs_of(runs))), *_differences(runs)]
    if out:
        write_text(out, _page(runs, tables))
    return tables


def runs_in(folder: Path) -> list[Path]:
    """Returns a run folder itself, or the run folders in a folder that is none."""
    if (folder / "recipe.yaml").is_file() or not folder.is_dir():
        return [folder]
    inside = sorted(path.parent for path in folder.glob("*/plan.txt"))
    return sorted(inside, key=lambda path: (len(path.name), path.name)) or [folder]


def _results(runs: Sequence[RunFiles]) -> tuple[str, tuple[str, ...], Rows]:
    names = list(dict.fromkeys(name for run in runs for name in run.result.get("metrics", {})))
    rows = []
    for run in runs:
        metrics = run.result.get("metrics", {})
        cells = [_figure(metrics.get(name)) + _in_brackets(interval_text(run, name)) for name in names]
        seconds = f"{sum(run.result['seconds'].values()):.0f} s" if run.result else "not finished"
        rows.append((str(run.folder), *cells, seconds))
    return "Results on the test rows, with 95 % intervals over the rows", ("run", *names, "time"), rows


def _seeds(groups: Sequence[SeedGroup]) -> list[tuple[str, tuple[str, ...], Rows]]:
    tables = []
    for group in groups:
        rows = [(name, f"{mean:.4g}", f"{low:.4g} to {high:.4g}") for name, (mean, low, high) in group.metrics.items()]
        title = f"Mean of {len(group.folders)} seeds, {group.folders[0]} to {group.folders[-1]}"
        tables.append((title, ("metric", "mean", "95 % interval over the seeds"), rows))
    return tables


def _pairs(pairs: Sequence[RunPair]) -> list[tuple[str, tuple[str, ...], Rows]]:
    if not pairs:
        return []
    rows = [
        (
            f"{pair.first}, {pair.second}" + (f", {pair.output}" if pair.output else ""),
            pair.measure,
            f"{pair.values[0]:.4g}",
            f"{pair.values[1]:.4g}",
            f"{pair.difference:+.4g} ({pair.interval[0]:+.4g} to {pair.interval[1]:+.4g})",
            "-" if pair.p_value is None else f"{pair.p_value:.2g}",
        )
        for pair in pairs
    ]
    heads = ("pair", "measure", "first", "second", "second - first, 95 % interval", "McNemar p")
    return [("Pairs on the same test rows", heads, rows)]


def _differences(runs: Sequence[RunFiles]) -> list[tuple[str, tuple[str, ...], Rows]]:
    found = recipe_differences(runs)
    rows = [(key, *values) for key, values in found.items()][:_MOST_DIFFERENCES]
    title = "Recipes" + (f": the first {len(rows)} of {len(found)} differences" if len(found) > len(rows) else "")
    return [(title, ("key", *(run.folder.name for run in runs)), rows)] if rows else []


def _page(runs: Sequence[RunFiles], tables: Sequence[tuple[str, tuple[str, ...], Rows]]) -> str:
    parts: list[Markup] = [
        element("section", element("h2", title), table(heads, rows, numbers=1 if place == 0 else 9))
        for place, (title, heads, rows) in enumerate(tables)
    ]
    names = list(dict.fromkeys(key for run in runs for row in run.epochs for key in row))
    shown = [name for name in names if name not in ("epoch", "phase") and "/" not in name]
    figures = [
        line_chart(name, {str(run.folder): as_points(run.epochs, "epoch", name) for run in runs}, x_label="epoch")
        for name in shown
    ]
    curves = element("section", element("h2", "Curves"), element("div", figures, class_="grid"))
    return page_of(f"Comparison of {len(runs)} runs", *parts, curves)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
