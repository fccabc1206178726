"""The figures of a report as SVG: plain data in, markup out.

They are written by hand and not by Matplotlib, since they follow the page: its width, its font, and light or dark. Each
has a text that says what it shows, for readers who do not see it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.results.formatting import rate_text
from finetune.results.report.markup import Markup, element

COLOURS = 7  # `.s0` ... of the style sheet
_WIDTH, _HEIGHT = 640.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 14.0, 12.0, 44.0
_MOST_POINTS = 600  # of a line; more are thinned out
_MOST_LINES = 12  # with names of their own in a legend

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
    dots: Sequence[float] = (),
    unit: bool = False,
) -> Markup:
    """Returns a figure with lines.

    Args:
        title: What the y axis shows.
        lines: The points of each line by its name; those that are not finite leave a gap.
        x_label: What the x axis shows.
        log_x: Whether the x axis is logarithmic; points with x <= 0 are left out then.
        log_y: The same of the y axis.
        marks: Places on the x axis to mark with a vertical line, each with a text.
        diagonal: Whether the line y = x is drawn.
        dots: Draws the points as dots of these radii, and no lines.
        unit: Whether both axes go from 0 to 1.

    Returns:
        The figure, with a legend where there are several lines.
    """
    known = {name: _usable(points, log_x, log_y) for name, points in lines.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return element("p", f"{title}: nothing was recorded.", class_="quiet")
    flat = [point for points in known.values() for point in points]
    flat += [(0.0, 0.0), (1.0, 1.0)] if unit else []
    x_scale = _Scale([x for x, _ in flat] + [x for x, _ in marks], _LEFT, _WIDTH - _RIGHT, log_x)
    y_scale = _Scale([y for _, y in flat], _HEIGHT - _BOTTOM, _TOP, log_y)
    parts: list[Markup] = [*_grid(x_scale, y_scale, x_label)]
    if diagonal:
        low, high = max(x_scale.low, y_scale.low), min(x_scale.high, y_scale.high)
        parts.append(_line(x_scale(low), y_scale(low), x_scale(high), y_scale(high), "mark"))
    parts += [_mark(x_scale(x), text) for x, text in marks]
    for number, (name, points) in enumerate(known.items()):
        parts += _drawn(points, x_scale, y_scale, _colour(number, len(known)), dots, name)
    spoken = "; ".join(_spoken(name, points, x_label) for name, points in list(known.items())[:_MOST_LINES])
    figure = element(
        "svg", element("title", f"{title}. {spoken}"), parts, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img"
    )
    return element("figure", element("figcaption", title), figure, _legend(list(known)) if len(known) > 1 else None)


def histogram(title: str, counts: Sequence[int], edges: Sequence[float], *, x_label: str) -> Markup:
    """Returns a figure with a bar for each bin.

    Args:
        title: What is counted.
        counts: How many fall into each bin.
        edges: The ends of the bins, one more than there are bins.
        x_label: What the x axis shows.
    """
    x_scale = _Scale([edges[0], edges[-1]], _LEFT, _WIDTH - _RIGHT, False)
    y_scale = _Scale([0.0, float(max(*counts, 1))], _HEIGHT - _BOTTOM, _TOP, False)
    bars = [
        element(
            "rect",
            x=x_scale(edges[place]),
            y=y_scale(count),
            width=max(x_scale(edges[place + 1]) - x_scale(edges[place]) - 1, 0.5),
            height=max(_HEIGHT - _BOTTOM - y_scale(count), 0.0),
            class_="bar",
        )
        for place, count in enumerate(counts)
    ]
    most = max(range(len(counts)), key=lambda place: counts[place])
    spoken = f"{title}: {sum(counts):,} in all, most of them from {edges[most]:.3g} to {edges[most + 1]:.3g}"
    figure = element(
        "svg",
        element("title", spoken),
        *_grid(x_scale, y_scale, x_label),
        bars,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
    )
    return element("figure", element("figcaption", title), figure)


def share_bar(share: float | None) -> Markup:
    """Returns a share from 0 to 1 as a number with a bar behind it."""
    if share is None:
        return element("span", "-", class_="quiet")
    kind = "share low" if share < 0.5 else "share"
    return element("span", f"{share:.3f}", class_=kind, style=f"--v:{100 * share:.1f}%")


def curve(spans: Sequence[Sequence[float]]) -> Markup:
    """Returns a small picture of a curve, such as a sound: the least and the greatest value of each stretch."""
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    scale = 60 / ((high - low) or 1)
    bars = [
        element("rect", x=float(place), y=(high - span[1]) * scale, width=0.9, height=(span[1] - span[0]) * scale + 0.5)
        for place, span in enumerate(spans)
    ]
    title = element("title", f"a curve from {low:.3g} to {high:.3g}")
    return element("svg", title, bars, viewBox=f"0 0 {len(spans)} 61", role="img", class_="curve")


class _Scale:
    """Where values are on an axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        self.whole = all(float(value).is_integer() for value in values)  # epochs and steps have no fractions
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
            self.low, self.high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low, high)
            room = (self.high - self.low) * 0.04
            self.low, self.high = self.low - room, self.high + room
        elif high - low < 1e-12 * max(abs(high), abs(low), 1e-30):
            room = abs(high) * 0.1 or 1.0
            self.low, self.high = low - room, high + room
        else:
            self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, -0.01), 1.01) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Returns values worth a label, with their texts."""
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            steps = powers[:: max(len(powers) // 5, 1)]
            if len(powers) >= 2:
                return [(10.0**power, f"1e{power}") for power in steps]
            ends = [10 ** (self.low + share * (self.high - self.low)) for share in (0.05, 0.5, 0.95)]
            return [(value, rate_text(value)) for value in ends]
        step = _nice((self.high - self.low) / 5)
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        count = int((self.high - first * step) / step + 1e-9) + 1
        return [((first + n) * step, f"{round((first + n) * step, 12):.6g}") for n in range(min(count, 12))]


def _nice(step: float) -> float:
    """Returns 1, 2 or 5 times a power of ten, the least that is not below a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _usable(points: Points, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    usable = [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    every = max(-(-len(usable) // _MOST_POINTS), 1)
    return usable[::every] + (usable[-1:] if (len(usable) - 1) % every else [])


def _grid(x_scale: _Scale, y_scale: _Scale, x_label: str) -> list[Markup]:
    bottom, parts = _HEIGHT - _BOTTOM, []
    for value, text in y_scale.ticks():
        parts.append(_line(_LEFT, y_scale(value), _WIDTH - _RIGHT, y_scale(value), "grid"))
        parts.append(element("text", text, x=_LEFT - 8, y=y_scale(value) + 5, text_anchor="end"))
    for value, text in x_scale.ticks():
        parts.append(_line(x_scale(value), bottom, x_scale(value), bottom + 5, "grid"))
        parts.append(element("text", text, x=x_scale(value), y=bottom + 20, text_anchor="middle"))
    parts.append(_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis"))
    parts.append(element("text", x_label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _mark(x: float, text: str) -> Markup:
    label = element("text", text, x=x + 4, y=_TOP + 11, class_="quiet")
    return element("g", _line(x, _TOP, x, _HEIGHT - _BOTTOM, "mark"), label)


def _drawn(
    points: Points, x_scale: _Scale, y_scale: _Scale, colour: str, dots: Sequence[float], name: str
) -> list[Markup]:
    places = [(x_scale(x), y_scale(y)) for x, y in points]
    title = element("title", name)
    if dots or len(places) == 1:
        radii = [*dots, *[3.0] * (len(places) - len(dots))]
        circles = [element("circle", cx=x, cy=y, r=radius) for (x, y), radius in zip(places, radii, strict=False)]
        return [element("g", title, circles, class_=f"dots {colour}")]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [element("g", title, element("polyline", points=path), class_=f"line {colour}")]


def _colour(number: int, count: int) -> str:
    """Returns the class of a line; many lines run through one range of colours from input to output."""
    return f"s{number % COLOURS}" if count <= COLOURS else f"r{round(10 * number / (count - 1))}"


def _legend(names: Sequence[str]) -> Markup:
    """Names every line; of many, the first, the middle and the last."""
    count = len(names)
    shown = range(count) if count <= _MOST_LINES else (0, count // 2, count - 1)
    items = [element("li", element("i", class_=_colour(n, count)), names[n]) for n in shown]
    more = [element("li", f"and {count - len(items)} between them", class_="quiet")] if len(items) < count else []
    return element("ul", items, more, class_="legend")


def _spoken(name: str, points: Points, x_label: str) -> str:
    (x1, y1), (x2, y2) = points[0], points[-1]
    return f"{name}: {y1:.4g} at {x_label} {x1:.4g}, {y2:.4g} at {x2:.4g}"


def as_points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """Returns a column of a table as points; rows without either value are left out.

    Args:
        rows: The rows of the table.
        x: The column of the x axis.
        y: The column of the y axis.
    """
    return [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
