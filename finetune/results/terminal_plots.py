"""A curve in the terminal, in braille dots or in plain ASCII."""

import math
from collections.abc import Sequence

import numpy as np

from finetune.results.formatting import rate_text
from finetune.results.plot_style import as_floats, loss_limits

_BRAILLE = 0x2800
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a braille character, by place


def terminal_plot(
    rates: Sequence[float],
    losses: Sequence[float | None],
    *,
    width: int = 78,
    height: int = 14,
    mark: float | None = None,
    ascii_only: bool = False,
) -> str:
    """Draws losses against learning rates on a logarithmic axis, as lines of text.

    Args:
        rates: Learning rate of each step, > 0 and rising, shape `(steps,)`.
        losses: Smoothed loss of each step; NaN and `None` are skipped. A divergence is cut at the top.
        width: Characters in a line, >= 30.
        height: Lines in all, >= 6.
        mark: A rate to point at.
        ascii_only: For a terminal whose encoding has no braille.

    Returns:
        Lines of at most `width` characters, without colours and without a newline at the end.
    """
    # Logarithms, as the rates of a sweep grow by a factor: steps are then equally wide.
    xs, values = np.log(as_floats(rates)), as_floats(losses)
    low, high = loss_limits(values, values)
    highest, lowest = f"{high:.4g}", f"{low:.4g}"
    margin = max(len(highest), len(lowest))
    columns, lines = max(width, 30) - margin - 1, max(height, 6) - (2 if mark is None else 3)
    # A braille character has 2 x 4 dots, so the curve is drawn at twice the width and four times the height.
    across, down = (1, 1) if ascii_only else (2, 4)  # dots in a character
    dots = _dots(xs, values, low, high, (lines * down, columns * across))
    rows = ["".join("*" if dot else " " for dot in row) for row in dots] if ascii_only else _as_braille(dots)
    corner, wall, floor, pointer = "+|-^" if ascii_only else "└│─▲"
    below = [_ticks(xs, columns)]
    if mark is not None:
        place = _place(math.log(mark), xs, columns)
        # The vertical line gives way to the curve.
        rows = [row[:place] + (wall if row[place] == " " else row[place]) + row[place + 1 :] for row in rows]
        below.append(_pointer_line(pointer, rate_text(mark), place, columns))
    labels = [highest, *[""] * (lines - 2), lowest]
    drawing = [label.rjust(margin) + wall + row for label, row in zip(labels, rows, strict=True)]
    drawing += [" " * margin + corner + floor * columns, *(" " * (margin + 1) + line for line in below)]
    return "\n".join(line.rstrip() for line in drawing)


def _dots(xs: np.ndarray, values: np.ndarray, low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
    """Draws a connected line; returns which dots are black, shape `shape`, the first row at the top."""
    dots = np.zeros(shape, bool)
    known = np.isfinite(values)
    if not known.any():
        return dots
    # A value for each column of dots; none before the first finite loss and after the last.
    curve = np.interp(np.linspace(xs[0], xs[-1], shape[1]), xs[known], values[known], left=math.nan, right=math.nan)
    drops = (high - curve) / (high - low or 1.0) * (shape[0] - 1)
    for column in np.flatnonzero(np.isfinite(drops)):
        here, before = drops[column], drops[max(column - 1, 0)]
        # From the height of the column before to this height, so that a steep part has no holes.
        ends = np.rint(np.clip(sorted([here, here if np.isnan(before) else before]), -1, shape[0])).astype(int)
        dots[max(ends[0], 0) : ends[1] + 1, column] = True
    return dots


def _as_braille(dots: np.ndarray) -> list[str]:
    """Packs 4 x 2 dots into a character each: its code is the sum of the bits of its black dots."""
    lines, columns = dots.shape[0] // 4, dots.shape[1] // 2
    codes = (dots.reshape(lines, 4, columns, 2) * _DOTS[None, :, None, :]).sum(axis=(1, 3))
    return ["".join(chr(_BRAILLE + code) if code else " " for code in row) for row in codes.tolist()]


def _place(x: float, xs: np.ndarray, columns: int) -> int:
    """Returns the column of a logarithmic rate, within the drawing."""
    # `or 1.0`: a curve of a single step has no width.
    share = (x - xs[0]) / (np.ptp(xs) or 1.0)
    return int(np.clip(round(share * (columns - 1)), 0, columns - 1))


def _ticks(xs: np.ndarray, columns: int) -> str:
    """Writes as many powers of ten as there is room for; the ends, where there are fewer than two."""
    # 1e-6: an end that is a power of ten, but for rounding, gets its mark.
    powers = range(math.ceil(xs[0] / math.log(10) - 1e-6), math.floor(xs[-1] / math.log(10) + 1e-6) + 1)
    rates = [10.0**power for power in powers[:: max(1, math.ceil(len(powers) * 8 / columns))]]
    line = ""
    for rate in rates if len(rates) > 1 else np.exp(xs[[0, -1]]):
        text = f"1e{round(math.log10(rate))}" if len(rates) > 1 else rate_text(rate)
        line = line.ljust(min(_place(math.log(rate), xs, columns), columns - len(text))) + text
    return line


def _pointer_line(pointer: str, text: str, place: int, columns: int) -> str:
    """Writes a pointer at its place, with the text on the side that has room."""
    after = " " * place + f"{pointer} {text}"
    return after if len(after) <= columns else f"{text} {pointer}".rjust(place + 1)
