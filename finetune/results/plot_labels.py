"""Texts above a picture, on poles that stand on points of a curve, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

LINE_HEIGHT = 0.27  # of a line of flags, in inches
_GAP = 12  # pixels between the end of a text and the next pole


class Flag(NamedTuple):
    """A text above the axes and the point of the curve that its pole stands on."""

    x: float
    y: float
    text: str
    colour: str
    weight: str


def raise_flags(axis: Axes, flags: Sequence[Flag], *, axes_height: float) -> int:
    """Writes the flags above axes of this height in inches on as many lines as it takes; returns how many.

    The lower half is written to the left of its poles, the rest to the right, so that neither meets poles of the other.
    """
    flags = sorted(flags, key=lambda flag: flag.x)
    texts = [_flag_text(axis, flag) for flag in flags]
    widths = [text.get_window_extent().width + _GAP for text in texts]
    poles = [float(axis.transData.transform((flag.x, 1))[0]) for flag in flags]
    middle = _middle(poles, widths, axis.figure.bbox.width)
    left, right = slice(0, middle), slice(middle, None)
    lines = _stack([-pole for pole in poles[left]], widths[left])
    lines += reversed(_stack(poles[right][::-1], widths[right][::-1]))
    for number, (flag, text, line) in enumerate(zip(flags, texts, lines, strict=True)):
        to_left = number < middle
        height = 1 + (0.03 + LINE_HEIGHT * line) / axes_height
        text.xy = (flag.x, height)
        text.set(ha="right" if to_left else "left", x=-3 if to_left else 3)
        _draw_pole(axis, flag, height + 0.2 / axes_height)
    return max(lines, default=-1) + 1


def _flag_text(axis: Axes, flag: Flag) -> Annotation:
    style = {"color": flag.colour, "fontweight": flag.weight, "fontsize": 12, "va": "bottom"}
    return axis.annotate(flag.text, (flag.x, 1), (3, 0), axis.get_xaxis_transform(), "offset points", **style)


def _middle(poles: Sequence[float], widths: Sequence[float], room: float) -> int:
    """Returns how many flags are written to the left: half of them, or none or all where the picture ends."""
    middle = len(poles) // 2
    if any(pole < width for pole, width in zip(poles[:middle], widths, strict=False)):
        return 0
    beyond = (pole + width > room for pole, width in zip(poles[middle:], widths[middle:], strict=True))
    return len(poles) if any(beyond) else middle


def _stack(poles: Sequence[float], widths: Sequence[float]) -> list[int]:
    """Returns a line for each text that begins at its pole, the first poles being the farthest in writing direction."""
    lines: list[int] = []
    begins: list[float] = []  # by line, where its last text begins
    for pole, width in zip(poles, widths, strict=True):
        # The poles of all lines above stand in the way of a text as well.
        line = next((i for i in range(len(begins)) if min(begins[i:]) > pole + width), len(begins))
        begins[line : line + 1] = [pole]
        lines.append(line)
    return lines


def _draw_pole(axis: Axes, flag: Flag, top: float) -> None:
    low, high = axis.get_ylim()
    foot = (min(flag.y, high) - low) / (high - low)
    (pole,) = axis.plot([flag.x] * 2, [foot, top], transform=axis.get_xaxis_transform(), zorder=1.5)
    pole.set(color=flag.colour, linewidth=0.9, clip_on=False)
