"""Labels above a picture, each joined to a point of a curve by a leader line, without overlaps.

The labels are written on as few lines as possible. The left half of them ends at its leader lines and the right half
begins there, so that no label crosses a leader line of the other half:

    suggested 1e-3 |                                  | minimum 2e-1
        valley 3e-4 |   |                       | steep 4e-2  |
                    |   |                       |             |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_HEIGHT = 0.27  # of a line of labels, in inches
_GAP = 12  # pixels between the end of a label and the next leader line


class PointLabel(NamedTuple):
    """A text above the axes and the point of the curve that it describes.

    Attributes:
        x: Horizontal position of the point, in data coordinates.
        y: Vertical position of the point, in data coordinates.
        text: The label.
        colour: Of the text and the leader line.
        weight: Font weight of the text, `normal` or `bold`.
    """

    x: float
    y: float
    text: str
    colour: str
    weight: str


def draw_labels(axis: Axes, labels: Sequence[PointLabel], *, axes_height: float) -> int:
    """Writes labels above axes, on as many lines as they need.

    Args:
        axis: The axes; their limits and the size of the figure must be final, as the layout counts pixels.
        labels: The labels, in any order.
        axes_height: Height of the axes in inches.

    Returns:
        The number of lines, each `LINE_HEIGHT` high.
    """
    # All below counts on this order: left to right, as in the sketch at the top.
    labels = sorted(labels, key=lambda label: label.x)
    # Drawn once to be measured, and moved to their lines afterwards: only a drawn text knows its width.
    texts = [
        axis.annotate(
            label.text,
            (label.x, 1),
            (3, 0),
            axis.get_xaxis_transform(),
            "offset points",
            color=label.colour,
            fontweight=label.weight,
            fontsize=12,
            va="bottom",
        )
        for label in labels
    ]
    widths = [text.get_window_extent().width + _GAP for text in texts]
    xs = [float(axis.transData.transform((label.x, 1))[0]) for label in labels]  # pixels
    middle = _number_on_the_left(xs, widths, axis.figure.bbox.width)
    # Both halves are assigned from the edge of the picture inwards, in the direction in which their texts grow.
    lines = _assign_lines([-x for x in xs[:middle]], widths[:middle])
    lines += reversed(_assign_lines(xs[middle:][::-1], widths[middle:][::-1]))
    for number, (label, text, line) in enumerate(zip(labels, texts, lines, strict=True)):
        to_left = number < middle
        # In the axes' own coordinates, where 1 is the upper edge and inches are divided by the height.
        bottom = 1 + (0.03 + LINE_HEIGHT * line) / axes_height
        text.xy = (label.x, bottom)
        text.set(ha="right" if to_left else "left", x=-3 if to_left else 3)
        _draw_leader(axis, label, bottom + 0.2 / axes_height)
    return max(lines, default=-1) + 1


def _number_on_the_left(xs: Sequence[float], widths: Sequence[float], room: float) -> int:
    """Returns how many labels are written to the left: half of them; none or all where the picture would cut them."""
    middle = len(xs) // 2
    if any(x < width for x, width in zip(xs[:middle], widths, strict=False)):
        return 0
    beyond = (x + width > room for x, width in zip(xs[middle:], widths[middle:], strict=True))
    return len(xs) if any(beyond) else middle


def _assign_lines(xs: Sequence[float], widths: Sequence[float]) -> list[int]:
    """Returns a line for each label, counted from the axes; the first label is the farthest in writing direction."""
    lines: list[int] = []
    starts: list[float] = []  # by line: where its last label starts
    for x, width in zip(xs, widths, strict=True):
        # The leader lines of all lines above pass through a line, too, so a label must end before each of them.
        line = next((i for i in range(len(starts)) if min(starts[i:]) > x + width), len(starts))
        starts[line : line + 1] = [x]
        lines.append(line)
    return lines


def _draw_leader(axis: Axes, label: PointLabel, top: float) -> None:
    low, high = axis.get_ylim()
    # A point above the picture, as of a divergence that was cut off, has its leader end at the edge.
    bottom = (min(label.y, high) - low) / (high - low)
    (line,) = axis.plot([label.x] * 2, [bottom, top], transform=axis.get_xaxis_transform(), zorder=1.5)
    line.set(color=label.colour, linewidth=0.9, clip_on=False)
