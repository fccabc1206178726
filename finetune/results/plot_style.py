"""What all pictures share: style, colours, saving, and the range of losses to show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetune.errors import printable_lines
from finetune.results.run_folder import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008): distinguishable with every kind of colour blindness. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"
_DASHES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (9, 2)), "-")
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # shipped with Matplotlib
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "svg.hashsalt": "finetune",  # fixed ids, and no date (see `finish`): the same data give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draws in the style of all pictures within the block, whatever the settings of the machine."""
    # Imported here and not at the top, as in all of these modules: a command without pictures must not wait for it.
    import matplotlib as mpl

    with mpl.rc_context():
        # A matplotlibrc of the machine would change sizes, on which the layout counts.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(
    lines: int, columns: int, *, size: tuple[float, float], layout: Literal["constrained"] | None = None
) -> tuple[Figure, list[Axes]]:
    """Makes a figure without pyplot, and so without a display.

    Args:
        lines: Rows of axes.
        columns: Axes in a row.
        size: Width and height in inches.
        layout: `constrained` lets Matplotlib place the axes; `None` leaves that to the caller.

    Returns:
        The figure, and its axes row by row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout=layout)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def finish(figure: Figure, path: Path | None) -> Figure:
    """Saves a figure and lets notebooks show it.

    Args:
        figure: The figure.
        path: Writes `<path>.png` and `<path>.svg`; `path` may end in either. `None` writes nothing.

    Returns:
        The same figure.
    """
    # Names in a picture: an SVG file may not hold control characters at all.
    for artist in figure.findobj(lambda artist: hasattr(artist, "set_text")):
        text: Any = artist
        text.set_text(printable_lines(text.get_text()))
    # The axes are placed once and not for each file, which took a fifth of the time of a picture.
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)  # with "none" Matplotlib would lay out, and draw, once more for each file
    if path is not None:
        stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
        # SVG for papers, PNG for everything that shows no SVG.
        for ending, metadata in (("png", {}), ("svg", {"Date": None})):
            with replacing(stem.with_name(f"{stem.name}.{ending}")) as temporary:
                figure.savefig(temporary, format=ending, metadata=metadata)

    def as_png() -> bytes:
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    # IPython asks an object for `_repr_png_`. Its hook for figures is installed by pyplot only.
    vars(figure)["_repr_png_"] = as_png
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Returns the colour and the dashes of the line with this number, counted from 0."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def gradient(share: float) -> Any:
    """Returns the colour at a place between the first group (0) and the last (1), dark to bright."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * share)  # its last tenth is too pale for a line


def as_floats(values: Iterable[float | None]) -> np.ndarray:
    """Returns numbers as float64, with NaN for `None`."""
    return np.array([math.nan if value is None else float(value) for value in values])


def loss_limits(smoothed: Iterable[float | None], losses: Iterable[float | None]) -> tuple[float, float]:
    """Returns the lowest and the highest loss to show.

    A divergence is cut off, since the curve before it would look flat beside it: the picture ends above the start of
    the curve by half of what the loss falls, by the spread of the batches or by a tenth, whichever is most.

    Args:
        smoothed: Smoothed loss of each step, shape `(steps,)`; `None` and NaN are skipped.
        losses: Loss of each batch, the same shape.

    Returns:
        The limits; `(0, 1)` when no loss is finite.
    """
    smoothed, losses = _finite(smoothed), _finite(losses)
    if not len(smoothed):
        return 0.0, 1.0
    # What comes after the minimum is the divergence, which is to be cut off.
    falling = smoothed[: int(np.argmin(smoothed)) + 1]
    # Quantiles, since a single batch may be far off; of the first half, since the second may diverge.
    usual = np.quantile(losses[: max(len(losses) // 2, 1)], (0.02, 0.98))
    start = max(falling.max(), usual[1])
    # How far above the start; the last of the three keeps a flat curve from filling the picture with its noise.
    rise = max((falling.max() - smoothed.min()) / 2, np.ptp(usual), 0.1 * abs(start))
    low = min(smoothed.min(), np.quantile(losses, 0.02))
    return float(low), float(min(start + rise, max(start, smoothed.max())))


def _finite(values: Iterable[float | None]) -> np.ndarray:
    floats = as_floats(values)
    return floats[np.isfinite(floats)]
