"""Lengths of time as text: `90s`, `20m`, `1h30m`."""

import re

from finetune.errors import FinetuneError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile(r"(?=.)(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", re.ASCII)


def seconds_of(text: str, what: str) -> float:
    """Returns the seconds of a length of time such as `90s`, `20m`, `1h30m` or `90`.

    Args:
        text: The text.
        what: What it is for, for the message, such as "`--time-limit`".

    Raises:
        FinetuneError: It is none, or not longer than 0.
    """
    match = _FORM.fullmatch(text.strip().lower())
    try:
        amounts = (
            [float(part) * unit for part, unit in zip(match.groups(), _UNITS.values(), strict=True) if part]
            if match
            else []
        )
    except ValueError:
        amounts = []
    if not amounts or sum(amounts) <= 0:
        raise FinetuneError(f"{what} is a length of time, such as `90s`, `20m` or `1h30m`. Received `{text}`.")
    return sum(amounts)
