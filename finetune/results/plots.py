"""Pictures of a run: plain data in, PNG and SVG out.

Matplotlib is imported when a picture is drawn, so that commands without pictures start quickly. `pyplot` is never
imported: it would choose a window system, and keep every figure alive.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.results.formatting import rate_text
from finetune.results.plot_labels import LINE_HEIGHT, PointLabel, draw_labels
from finetune.results.plot_style import (
    COLOURS,
    GREY,
    as_floats,
    finish,
    gradient,
    line_style,
    loss_limits,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[str, Any]
Verdict = Mapping[str, Any]

_RULE_MARKS = {"valley": "v", "slide": "s", "minimum": "D", "steep": "^"}
_MOST_AXES = 4  # x axes below each other; more cannot be read
# The picture of an LR range test is laid out in inches: its axes keep their size, and the figure grows around them.
_WIDTH, _LEFT, _AXES_WIDTH, _AXES_HEIGHT = 9.3, 1.1, 7.5, 4.2
_X_AXIS, _TEXT_LINE = 0.72, 0.24
_REASON_WIDTH = 100  # characters
# The panels of a training are laid out in inches, too: letting Matplotlib place them takes half of the picture's time.
_PANEL_WIDTH, _PANEL_LEFT, _PANEL_AXES_WIDTH = 5.0, 1.15, 3.7
_PANEL_HEIGHT, _PANEL_TOP, _PANEL_AXES_HEIGHT = 4.0, 0.6, 2.8
_NOTED = 24  # groups in a note
_LAG = (
    "The smoothed loss is a mean of all losses so far, of which the last 50 count most (factor 0.98): it lags behind "
    "the batches, and begins to rise at a higher rate than they do."
)
_RATE, _RATES = "learning_rate/", "learning rate"  # of a group in a row, and the panel of all of them


def plot_lr_range(curves: Mapping[str, Curve], verdicts: Mapping[str, Verdict], *, path: Path | None = None) -> Figure:
    """Draws the loss of an LR range test against the learning rate, with the suggested rate and the divergence.

    Args:
        curves: A single curve, or a curve for each layer group that was swept, by name. A curve holds plain lists:
            `rates`, `losses` of the batches and `smoothed` losses, each of shape `(steps,)`. Optional are `repeats`,
            the smoothed losses of every repeat, drawn as a band, and `group_rates`, the rates of each group by name,
            drawn as further axes. Losses may be NaN or `None`.
        verdicts: What `Verdict.to_json` returns, for each curve by name.
        path: Writes `<path>.png` and `<path>.svg`; `path` may end in either.

    Returns:
        The figure; notebooks show it.
    """
    with style():
        figure, (axis,) = new_figure(1, 1, size=(_WIDTH, _AXES_HEIGHT))
        axis.set_position((_LEFT / _WIDTH, 0, _AXES_WIDTH / _WIDTH, 1))
        labels: list[PointLabel] = []
        for number, (name, curve) in enumerate(curves.items()):
            verdict, many = verdicts[name], len(curves) > 1
            _draw_curve(axis, curve, _summary(name, verdict) if many else None, number)
            labels += _mark_chosen(axis, curve, verdict, name if many else None, number)
            labels += [] if many else _mark_rules(axis, curve, verdict)
            _mark_divergence(axis, verdict, number if many else None)
        # The order matters: limits, labels (counted in pixels), and the size of the figure, which grows around them.
        _scale(axis, list(curves.values()))  # before the labels, which are laid out in pixels
        if len(curves) == 1 and "group_rates" not in next(iter(curves.values())):
            axis.set_xlabel(f"learning rate of {next(iter(curves))} alone")
        axes_below, notes = _add_group_axes(axis, *curves.values()) if len(curves) == 1 else (0, "")
        label_lines = draw_labels(axis, labels, axes_height=_AXES_HEIGHT)
        _lay_out(figure, axis, label_lines, axes_below, _refusals(verdicts), f"{_LAG}{notes}")
        return finish(figure, path)


def plot_training(
    history_rows: Sequence[Mapping[str, Any]],
    *,
    rates_within: Sequence[Mapping[str, Any]] = (),
    trained: Mapping[int, Sequence[str]] | None = None,
    path: Path | None = None,
) -> Figure:
    """Draws the loss, each metric and the learning rate of every group over the epochs, a panel each.

    Args:
        history_rows: A row for each epoch, as in `metrics.csv`: `epoch`, `loss`, `val_loss`, metrics and
            `learning_rate/<group>`, and in a run with phases the number of the `phase`. A value that is missing and a
            rate of 0 leave a gap.
        rates_within: Rows of rates within the epochs, whose `epoch` is a fraction: epoch 1 goes from 0.5 to 1.5. They
            show a rate that rises and falls, and are drawn in place of the rates in `history_rows`.
        trained: Names of the groups that are trained in each phase, by its number. The rate of a group then has a gap
            where it is not trained. By default all groups are trained in all phases.
        path: Writes `<path>.png` and `<path>.svg`; `path` may end in either.

    Returns:
        The figure; notebooks show it.
    """
    panels = _panels(history_rows)
    # Up to three panels beside each other: more would be too small to read on a page.
    columns = min(max(len(panels), 1), 3)
    lines = max(-(-len(panels) // columns), 1)
    epochs = [int(row.get("epoch", number)) for number, row in enumerate(history_rows, start=1)]
    with style():
        figure, axes = new_figure(lines, columns, size=(_PANEL_WIDTH * columns, _PANEL_HEIGHT * lines))
        for axis, (title, keys) in zip(axes, panels.items(), strict=False):
            rows, places = history_rows, epochs
            if title == _RATES and rates_within:
                rows, places = rates_within, [row["epoch"] for row in rates_within]
            _draw_panel(axis, title, {key: _column(rows, key, trained) for key in keys}, places)
            _mark_phases(axis, history_rows, epochs)
        width, height = figure.get_size_inches()
        for number, axis in enumerate(axes):
            axis.set_visible(number < len(panels))
            left, above = number % columns * _PANEL_WIDTH, number // columns * _PANEL_HEIGHT
            bottom = height - above - _PANEL_TOP - _PANEL_AXES_HEIGHT
            size = (_PANEL_AXES_WIDTH / width, _PANEL_AXES_HEIGHT / height)
            axis.set_position(((left + _PANEL_LEFT) / width, bottom / height, *size))
        return finish(figure, path)


# -- The LR range test ----------------------------------------------------------------------------------------------


def _draw_curve(axis: Axes, curve: Curve, summary: str | None, number: int) -> None:
    """Draws the losses, the smoothed losses and the band of repeats; `summary` names one curve of several."""
    # With several curves, losses of the batches are pale and have no entry in the legend: they only show the noise.
    rates, losses, smoothed = (as_floats(curve[key]) for key in ("rates", "losses", "smoothed"))
    line = line_style(number)
    repeats = curve.get("repeats") or ()
    if len(repeats) > 1:
        low, high = _band(repeats)
        label = None if summary else f"smoothed, lowest to highest of {len(repeats)} repeats"
        axis.fill_between(rates[: len(low)], low, high, color=line["color"], alpha=0.2, linewidth=0, label=label)
    raw = None if summary else "loss of the batches" + (", mean of the repeats" if len(repeats) > 1 else "")
    axis.plot(rates, losses, color=line["color"], alpha=0.2 if summary else 0.4, linewidth=1, label=raw)
    axis.plot(rates, smoothed, label=summary or "smoothed", linewidth=2.4, **line)


def _band(repeats: Sequence[Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest of the repeats at each step that all of them made."""
    # A repeat that diverged ended earlier; beyond it there is no band of all.
    shortest = min(map(len, repeats))
    losses = np.array([as_floats(repeat)[:shortest] for repeat in repeats])
    return losses.min(axis=0), losses.max(axis=0)


def _summary(name: str, verdict: Verdict) -> str:
    rate, divergence = verdict["learning_rate"], verdict["divergence"]
    suggestion = "no suggestion" if rate is None else f"{rate_text(rate)}, confidence {verdict['confidence']:.2f}"
    return f"{name}: {suggestion}" + ("" if divergence is None else f", diverges from {rate_text(divergence)}")


def _mark_rules(axis: Axes, curve: Curve, verdict: Verdict) -> list[PointLabel]:
    """Marks the rate of each rule on the curve; returns the labels to write above."""
    labels = []
    for suggestion in verdict["suggestions"]:
        rate, used = suggestion["learning_rate"], suggestion["used"]
        text = f"{suggestion['rule']} {rate_text(rate)}"
        shape, shade = _RULE_MARKS.get(suggestion["rule"], "o"), "black" if used else GREY
        mark = {"marker": shape, "linestyle": "", "markersize": 8, "color": shade, "markerfacecolor": "white"}
        if curve["rates"][0] <= rate <= curve["rates"][-1]:
            point = _on_curve(rate, curve)
            axis.plot(*point, **mark, zorder=4)
            labels.append(PointLabel(*point, text if used else f"({text})", shade, "normal"))
        else:  # the rule `minimum` suggests a tenth of a rate, which may lie before the first
            axis.plot([], [], **mark, label=f"({text}: outside the range)")
    if any(text.startswith("(") for *_, text, _, _ in labels):
        axis.plot([], [], "o", color=GREY, markerfacecolor="white", label="(not used: the loss does not fall there)")
    return labels


def _mark_chosen(axis: Axes, curve: Curve, verdict: Verdict, name: str | None, number: int) -> list[PointLabel]:
    rate = verdict["learning_rate"]
    if rate is None:
        return []
    colour, point = line_style(number)["color"], _on_curve(rate, curve)
    label = None if name else f"suggested {rate_text(rate)}, confidence {verdict['confidence']:.2f}"
    axis.plot(*point, "*", markersize=18, color=colour, markeredgecolor="white", zorder=5, label=label)
    return [PointLabel(*point, f"{name or 'suggested'} {rate_text(rate)}", colour, "bold")]


def _on_curve(rate: float, curve: Curve) -> tuple[float, float]:
    rates, smoothed = as_floats(curve["rates"]), as_floats(curve["smoothed"])
    known = np.isfinite(smoothed)
    # Between two steps the curve is straight on the logarithmic axis, so it is interpolated there.
    return rate, float(np.interp(math.log(rate), np.log(rates[known]), smoothed[known]))


def _mark_divergence(axis: Axes, verdict: Verdict, number: int | None) -> None:
    rate = verdict["divergence"]
    if rate is not None:
        colour = COLOURS[1] if number is None else line_style(number)["color"]
        label = f"diverges from {rate_text(rate)}" if number is None else None
        axis.axvline(rate, color=colour, linestyle=":", linewidth=1.8, label=label)


def _scale(axis: Axes, curves: Sequence[Curve]) -> None:
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    # A fixed place, as wide numbers would push it out of the picture: the axes do not move (see the inches above).
    axis.yaxis.set_label_coords(-0.85 / _AXES_WIDTH, 0.5)
    axis.yaxis.set_major_formatter("{x:.6g}")
    rates = np.log(np.concatenate([as_floats(curve["rates"]) for curve in curves]))
    room = max(np.ptp(rates) * 0.02, 0.1)
    axis.set_xlim(math.exp(rates.min() - room), math.exp(rates.max() + room))
    # Every curve must be seen whole, whatever the others do.
    lows, highs = zip(*(loss_limits(curve["smoothed"], curve["losses"]) for curve in curves), strict=True)
    low, high = min(lows), max(highs)
    room = max((high - low) * 0.06, abs(high) * 0.01, 1e-9)
    axis.set_ylim(low - room, high + room)


def _add_group_axes(axis: Axes, curve: Curve) -> tuple[int, str]:
    """Draws an axis below for each ratio of the groups' rates to the rate that is swept.

    Groups whose ratio is 1 share the axis of the curve, and groups with equal ratios share an axis. A group without a
    fixed ratio, whose schedule moves on during the sweep, has none.

    Returns:
        How many axes were drawn, and a sentence on the groups that have none.
    """
    rates = as_floats(curve["rates"])
    swept: list[str] = []
    others: dict[str, tuple[float, list[str]]] = {}
    for name, values in (curve.get("group_rates") or {}).items():
        ratios = as_floats(values) / rates
        # Within a thousandth: the rates are those of float32 variables, and an axis is read no closer.
        if np.allclose(ratios, 1, rtol=1e-3):
            swept.append(name)
        elif ratios[0] > 0 and np.allclose(ratios, ratios[0], rtol=1e-3):
            others.setdefault(f"{ratios[0]:.3g}", (float(ratios[0]), []))[1].append(name)
    if swept:
        axis.set_xlabel(f"learning rate of {_names(swept)}")
    shown = list(reversed(others.values()))
    # First, last, and some between: the ends are what a reader compares.
    if len(shown) >= _MOST_AXES:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, _MOST_AXES - 1).astype(int)]
    for place, (ratio, names) in enumerate(shown, start=1):
        functions = (partial(np.multiply, ratio), partial(np.multiply, 1 / ratio))
        below = axis.secondary_xaxis(-place * _X_AXIS / _AXES_HEIGHT, functions=functions)
        below.set_xlabel(f"of {_names(names)}")
    placed = {*swept} | {name for _, names in shown for name in names}
    without = [f"{name} ({ratio:.3g})" for ratio, names in others.values() for name in names if name not in placed]
    moving = [
        n for n in curve.get("group_rates") or {} if n not in placed and all(n not in g for _, g in others.values())
    ]
    notes = f" Without an axis of their own, times the rate above: {', '.join(without[:_NOTED])}." if without else ""
    return len(shown), notes + (f" Not raised in proportion: {', '.join(moving[:_NOTED])}." if moving else "")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)} groups)"


def _refusals(verdicts: Mapping[str, Verdict]) -> str:
    """Returns why there is no suggestion, for each curve without one."""
    refused = {name: f"No suggestion. {verdict['refused']}" for name, verdict in verdicts.items() if verdict["refused"]}
    reasons = (f"{name}: {reason}" if len(verdicts) > 1 else reason for name, reason in refused.items())
    return "\n".join(textwrap.fill(reason, _REASON_WIDTH) for reason in reasons)


def _lay_out(figure: Figure, axis: Axes, label_lines: int, axes_below: int, refusals: str, notes: str) -> None:
    """Makes room above the axes for the labels, below them for more axes, the legend, the notes and the reasons."""
    notes = textwrap.fill(notes, _REASON_WIDTH + 10)
    handles, labels = axis.get_legend_handles_labels()
    # In two columns where the entries are short enough for half of the width.
    columns = 2 if max(map(len, labels)) < 45 else 1
    legend = _TEXT_LINE * -(-len(handles) // columns) + 0.1
    reasons = 0.2 * len(refusals.splitlines()) + 0.18 * len(notes.splitlines()) + 0.1
    bottom = _X_AXIS * (1 + axes_below) - 0.08 + legend + reasons + 0.1
    height = bottom + _AXES_HEIGHT + LINE_HEIGHT * label_lines + 0.15
    figure.set_size_inches(_WIDTH, height)
    axis.set_position((_LEFT / _WIDTH, bottom / height, _AXES_WIDTH / _WIDTH, _AXES_HEIGHT / height))
    place = (_LEFT / _WIDTH, (reasons + 0.1) / height)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=columns, fontsize=11, borderaxespad=0)
    figure.text(0.02, 0.07 / height, notes, fontsize=10, color=GREY, va="bottom")
    if refusals:
        above = 0.07 + 0.18 * len(notes.splitlines()) + 0.05
        figure.text(0.02, above / height, refusals, fontsize=11, color=COLOURS[1], va="bottom")


# -- Training --------------------------------------------------------------------------------------------------------


def _panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the columns of each panel: training and validation values of a metric, or the rates of all groups."""
    panels: dict[str, list[str]] = {}
    measured = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, Real))
    keys = [key for key in measured if key not in ("epoch", "phase")]
    # The loss first, the rates last; `sorted` is stable, so the metrics between stay in the order of the file.
    for key in sorted(keys, key=lambda key: (not key.endswith("loss"), key.startswith(_RATE))):
        title = _RATES if key.startswith(_RATE) else key.removeprefix("val_")
        panels.setdefault(title, []).append(key)
    return panels


def _draw_panel(axis: Axes, title: str, columns: Mapping[str, np.ndarray], epochs: Sequence[float]) -> None:
    from matplotlib.ticker import LogFormatter, MaxNLocator

    class RateFormatter(LogFormatter):
        """Plain text in place of powers of ten as formulas, which take a quarter of the time of the picture."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return rate_text(x).replace(".0e", "e") if super().__call__(x, pos) else ""

    is_rates, count = title == _RATES, len(columns)
    # Of many groups the legend names the first, the middle and the last; their colours run from input to output.
    named = range(count) if count <= len(COLOURS) else (0, count // 2, count - 1)
    for number, (key, values) in enumerate(columns.items()):
        label = "validation" if key.startswith("val_") else key.removeprefix(_RATE) if is_rates else "training"
        line = line_style(number) if count <= len(COLOURS) else {"color": gradient(number / (count - 1))}
        # Without points where there are so many epochs that points would hide the line.
        marker = "o" if len(epochs) < 50 else ""
        shown = label if number in named else None
        axis.plot(epochs, values, label=shown, linewidth=2, marker=marker, markersize=4.5, **line)
    axis.set_title(title, loc="left")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    # Half an epoch at each side, so that a run of a single epoch shows a point in the middle.
    axis.set_xlim(math.floor(min(epochs) + 0.5) - 0.5, math.floor(max(epochs) + 0.5) + 0.5)
    if is_rates:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(RateFormatter())
        axis.yaxis.set_minor_formatter(RateFormatter(minor_thresholds=(1, 0.4)))
    axis.legend(fontsize=11, frameon=True, framealpha=0.8, edgecolor="none")


def _mark_phases(axis: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> None:
    """Draws a line where a phase begins, halfway between two epochs."""
    phases = [row.get("phase") for row in rows]
    for place in range(1, len(phases)):
        if phases[place] != phases[place - 1]:
            axis.axvline((epochs[place - 1] + epochs[place]) / 2, color=GREY, linestyle=":", linewidth=1.2, zorder=0)


def _column(rows: Sequence[Mapping[str, Any]], key: str, trained: Mapping[int, Sequence[str]] | None) -> np.ndarray:
    """Returns a column of the rows, shape `(epochs,)`; NaN where a group has no rate because it is not trained."""
    values = as_floats(row.get(key) for row in rows)
    if not key.startswith(_RATE):
        return values
    group = key.removeprefix(_RATE)
    # A row without a phase is of a run without phases, whose only phase is the first.
    frozen = [trained is not None and group not in trained.get(row.get("phase", 1), ()) for row in rows]
    # A rate of 0 (the first step of a warm-up) has no place on a logarithmic axis.
    return np.where((values > 0) & ~np.array(frozen, bool), values, np.nan)
