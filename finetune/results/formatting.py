"""Numbers as short text, in one way for tables, plots and messages."""

from collections.abc import Mapping, Sequence

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size_text(size: float) -> str:
    """Writes a number of bytes with three digits, in powers of 1,000.

    >>> size_text(999), size_text(1_500_000), size_text(90_864_192)
    ('999 bytes', '1.5 MB', '90.9 MB')
    """
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:  # 999.5 would be written as 1e+03
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def shape_text(shape: Sequence[int]) -> str:
    """Writes a shape as `3x3x8`, and the shape of a single number as `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def rate_text(rate: float) -> str:
    """Writes a learning rate with two digits.

    >>> rate_text(0.00123), rate_text(0.25)
    ('1.2e-3', '0.25')
    """
    # Elsewhere always with an exponent: `0.0012` and `0.00012` are easily taken for each other.
    if 0.1 <= rate < 100:
        return f"{rate:.2g}"
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def counts_text(counts: Mapping[str, int]) -> str:
    """Writes how many there are of each kind.

    >>> counts_text({"slot": 20, "counter": 1})
    '20 slots, 1 counter'
    """
    return ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())
