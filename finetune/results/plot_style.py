"""What all pictures share: style, colours, saving, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetune.results.run_folder import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with every kind of colour blindness. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#767676"
_DASHES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (9, 2)), "-")
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # the one that Matplotlib brings
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "svg.hashsalt": "finetune",  # with no date in it, the same data give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Makes what is drawn in the block look like the other pictures, whatever the machine's own settings."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(
    lines: int, columns: int, *, size: tuple[float, float], layout: Literal["constrained"] | None = None
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of a size in inches, made without pyplot and so without a display, and its axes by line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout=layout)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def finish(figure: Figure, path: Path | None) -> Figure:
    """Writes `<path>.png` and `<path>.svg`, where `path` may end in either, and lets notebooks show the figure."""
    if path is not None:
        stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
        for ending, metadata in (("png", {}), ("svg", {"Date": None})):
            with replacing(stem.with_name(f"{stem.name}.{ending}")) as temporary:
                figure.savefig(temporary, format=ending, metadata=metadata)
    vars(figure)["_repr_png_"] = partial(_as_png, figure)  # notebooks ask for it; their own hook comes with pyplot only
    return figure


def _as_png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def line_style(number: int) -> dict[str, Any]:
    """Returns the colour and the dashes of the line with this number, counted from 0."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def rate_text(rate: float) -> str:
    """Writes a learning rate as short as can be.

    >>> rate_text(0.00123), rate_text(0.25)
    ('1.2e-3', '0.25')
    """
    if 0.1 <= rate < 100:
        return f"{rate:.2g}"
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def numbers(values: Iterable[float | None]) -> np.ndarray:
    """Returns plain numbers as float64, with NaN for what is `None`."""
    return np.array([math.nan if value is None else float(value) for value in values])


def worth_showing(smoothed: Iterable[float | None], losses: Iterable[float | None]) -> tuple[float, float]:
    """Returns the lowest and the highest loss to show; a divergence is cut, as it would make the rest look flat."""
    smoothed, losses = _finite(smoothed), _finite(losses)
    if not len(smoothed):
        return 0.0, 1.0
    falling = smoothed[: int(np.argmin(smoothed)) + 1]
    usual = np.quantile(losses[: max(len(losses) // 2, 1)], (0.02, 0.98))
    start = max(falling.max(), usual[1])
    rise = max((falling.max() - smoothed.min()) / 2, np.ptp(usual), 0.1 * abs(start))
    low = min(smoothed.min(), np.quantile(losses, 0.02))
    return float(low), float(min(start + rise, max(start, smoothed.max())))


def _finite(values: Iterable[float | None]) -> np.ndarray:
    found = numbers(values)
    return found[np.isfinite(found)]
