#!/usr/bin/env python3
"""Puts the figures of `bench_step.py`, `profile_step.py` and `bench_run.py` into docs/step.md, and draws them.

python scripts/plot_step.py all.json --profile profile.json --run run.json
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.results.plot_style import COLOURS, GREY, finish, line_style, new_figure, style

Figures = Sequence[dict[str, Any]]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "step.md"
OURS = "finetune"
COLUMNS = """\
| system | groups | step | middle half | ms | start-up, s | of it imports | memory, MB | operations |
|---|--:|--:|--:|--:|--:|--:|--:|--:|"""
WIDEST = 2.4  # of a step's time, that of the baseline being 1
MEASURES = {"step": "ratio", "start-up": "startup_cpu_seconds", "peak memory": "peak_rss_mb"}


def by_workload(figures: Figures) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for figure in figures:
        found.setdefault(figure["workload"], []).append(figure)
    return found


def relative(own: Figures, key: str) -> dict[int, float]:
    """Returns a measure of ours at every number of groups, by that of one group."""
    values = {f["groups"]: f[key] for f in own if f["system"] == OURS and f[key] is not None}
    return {groups: value / values[1] for groups, value in values.items()} if 1 in values else {}


# -- Text -------------------------------------------------------------------------------------------------------------


def text(figures: Figures) -> str:
    machines = dict.fromkeys(f["machine"] for f in figures)
    told = [f"Measured on {'; '.join(machines)}.", *growth_table(figures), picture("groups", "Growth with the groups")]
    for name, own in by_workload(figures).items():
        told += [f"### {name[0].upper()}{name[1:]}", picture(slug(name), name), "\n".join([COLUMNS, *map(row, own)])]
    return "\n\n".join(told)


def picture(name: str, told: str) -> str:
    return f"![{told}](images/step_{name}.svg)"


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def growth_table(figures: Figures) -> Iterator[str]:
    rows = ["| most groups against 1 group | groups | step | start-up | peak memory |", "|---|--:|--:|--:|--:|"]
    for name, own in by_workload(figures).items():
        measured = [relative(own, key) for key in MEASURES.values()]
        most = max(measured[0], default=1)
        if most > 1:
            cells = [f"{values[most]:.2f}x" if most in values else "" for values in measured]
            rows.append(f"| {name} | {most:,} | {' | '.join(cells)} |")
    yield "\n".join(rows)


def row(f: dict[str, Any]) -> str:
    low, high = f["spread"]
    apart = [number(f[key], ".1f") for key in ("startup_cpu_seconds", "import_cpu_seconds")]
    apart += [number(f[key], ",.0f") for key in ("peak_rss_mb", "operations")]
    step = f"{f['ratio']:.2f}x | {low:.2f} to {high:.2f} | {f['step_milliseconds']:.2f}"
    return f"| {f['system']} | {f['groups']:,} | {step} | {' | '.join(apart)} |"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def run_text(found: Figures) -> str:
    rows = ["| | seconds | against plain Keras | middle half | share of training |", "|---|--:|--:|--:|--:|"]
    for f in found:
        spread = " to ".join(f"{value:.2f}" for value in f["spread"]) if "spread" in f else ""
        ratio, share = (format(f[key], form) if key in f else "" for key, form in (("ratio", ".2f"), ("share", ".1%")))
        rows.append(f"| {f['name']} | {f['seconds']:.3f} | {ratio}{'x' if ratio else ''} | {spread} | {share} |")
    return "\n".join(rows)


def fill(page: str, part: str, inside: str) -> str:
    """Puts text between the marks of a part."""
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"The page has no `{begin}` and `{end}` to put the figures between.")
    return f"{before}{begin}\n\n{inside}\n\n{end}{rest.partition(end)[2]}"


# -- Pictures ---------------------------------------------------------------------------------------------------------


def draw_growth(figures: Figures, folder: Path) -> None:
    """Draws step, start-up and memory of ours against the number of groups, by those of one group."""
    with style():
        figure, axes = new_figure(1, len(MEASURES), size=(15, 4.6), layout="constrained")
        for axis, (title, key) in zip(axes, MEASURES.items(), strict=True):
            for at, (name, own) in enumerate(by_workload(figures).items()):
                points = sorted(relative(own, key).items())
                axis.plot(*zip(*points, strict=True), marker="o", label=name, **line_style(at)) if points else None
            axis.set(title=f"{title}, by that of one group", xscale="log", xlabel="layer groups")
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_ylim(0, max(1.5, axis.get_ylim()[1]))
            axis.axhline(1.05 if key != "startup_cpu_seconds" else 1.1, color=GREY, linewidth=1, linestyle=":")
        axes[0].legend(loc="lower left", fontsize=10)
        finish(figure, folder / "step_groups.svg")


def draw_bars(name: str, own: Figures, folder: Path) -> None:
    """Draws the step of every system, by that of the baseline; of many numbers of groups the first and the last."""
    ends = {f["system"]: [g["groups"] for g in own if g["system"] == f["system"]] for f in own}
    shown = [f for f in own if f["groups"] in (min(ends[f["system"]]), max(ends[f["system"]]))][::-1]
    labels = [
        f["system"] + (f", {f['groups']:,} group{'s' * (f['groups'] > 1)}" if len(ends[f["system"]]) > 1 else "")
        for f in shown
    ]
    ratios, errors = [f["ratio"] for f in shown], [[], []]
    for f in shown:
        errors[0].append(max(f["ratio"] - f["spread"][0], 0))
        errors[1].append(max(f["spread"][1] - f["ratio"], 0))
    with style():
        figure, (axis,) = new_figure(1, 1, size=(9.5, 1.2 + 0.36 * len(shown)), layout="constrained")
        colours = [COLOURS[0] if f["system"].startswith(OURS) else "#b0b0b0" for f in shown]
        axis.barh(labels, ratios, xerr=errors, color=colours, ecolor=GREY, height=0.7)
        for at, (ratio, more) in enumerate(zip(ratios, errors[1], strict=True)):
            beyond = ratio + more > WIDEST  # such a bar is cut, so that the others can be told apart
            axis.text(WIDEST if beyond else ratio + more, at, f" {ratio:.2f}", va="center", fontsize=11)
        axis.axvline(1, color=GREY, linewidth=1)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="time of a step, by that of Keras with one Adam", title=name)
        axis.set_xlim(0, min(1.12 * max(map(sum, zip(ratios, errors[1], strict=True))), WIDEST))
        finish(figure, folder / f"step_{slug(name)}.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what `bench_step.py --json` wrote")
    parser.add_argument("--profile", type=Path, help="what `profile_step.py --json` wrote")
    parser.add_argument("--run", type=Path, help="what `bench_run.py --json` wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to fill (default: docs/step.md)")
    options = parser.parse_args(arguments)
    figures = json.loads(options.figures.read_text())
    folder = options.page.parent / "images"
    folder.mkdir(exist_ok=True)
    page = fill(options.page.read_text(), "figures", text(figures))
    draw_growth(figures, folder)
    for name, own in by_workload(figures).items():
        draw_bars(name, own, folder)
    if options.profile:
        from profile_step import table

        page = fill(page, "profile", table(*json.loads(options.profile.read_text())))
    if options.run:
        page = fill(page, "run", run_text(json.loads(options.run.read_text())))
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
