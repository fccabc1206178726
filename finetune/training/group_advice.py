"""Advice on layer groups that do not move, move far more than all others, or have a rate that is known to diverge."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

_ROWS = 3  # measurements that are needed, and the latest that are looked at
_STILL = 1e-7  # of the size of a group's weights: about half the distance between two float32 numbers
_TIMES = 100


def advice_on_groups(rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, str]:
    """Returns a sentence for each group that does not move, and for one that moves far more than all others.

    Args:
        rows: Rows of a `GroupMonitor`.
        groups: Names of the groups.

    Returns:
        Sentences by what they are about, such as `still/body`, so that each is said once however its numbers change.
    """
    ratios = {
        name: [row[f"update_ratio/{name}"] for row in rows if row[f"update_ratio/{name}"] is not None]
        for name in groups
    }
    moves = {name: median(values[-_ROWS:]) for name, values in ratios.items() if len(values) >= _ROWS}
    said = {
        f"still/{name}": (
            f"group `{name}` is trained and does not move: an update changes its weights by {move:.1e} of their size, "
            f"which float32 hardly holds. {_why_still(rows, name)}"
        )
        for name, move in moves.items()
        if move < _STILL
    }
    moving = sorted((move, name) for name, move in moves.items() if move >= _STILL)
    if len(moving) > 1 and moving[-1][0] >= _TIMES * moving[-2][0]:
        (second, other), (most, name) = moving[-2:]
        said[f"fast/{name}"] = (
            f"group `{name}` moves {most / second:.0f} times as much as any other: an update changes its weights by "
            f"{most:.1e} of their size, those of `{other}` by {second:.1e}. Lower its learning rate or raise the others"
        )
    return said


def _why_still(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    norms = [row[f"gradient_norm/{name}"] for row in rows if row[f"gradient_norm/{name}"] is not None]
    if norms and norms[-1] == 0:
        return "Its gradients are 0: look for layers that pass none on, such as a saturated activation"
    return "Raise its learning rate, or freeze it, which costs less"


def advice_on_divergence(divergences: Mapping[str, float | None], peaks: Mapping[str, float], every: str) -> list[str]:
    """Returns a sentence for each group whose peak rate is at least that from which a range test has diverged.

    Args:
        divergences: That rate by the name of the group that was swept; `None` where the loss did not rise.
        peaks: The peak rate of each group that is trained, input to output.
        every: The name under which all groups were swept together; the rate is then that of the last.
    """
    rates = {[*peaks][-1] if name == every and peaks else name: rate for name, rate in divergences.items()}
    return [
        f"group `{name}` has a peak rate of {peaks[name]:.3g}, and in the LR range test the loss rises at {rate:.3g}: "
        "training may diverge. Lower it, to a tenth of that rate at most"
        for name, rate in rates.items()
        if rate is not None and peaks.get(name, 0.0) >= rate
    ]
