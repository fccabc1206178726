"""What the workers of a run compare before they train: a difference would make each train a network of its own."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from finetune.distribution.cluster import Cluster
from finetune.errors import FinetuneError, printable

_SHOWN = 5  # differences in a message
_LONGEST = 60  # characters of a value


def versions(finetune: str) -> dict[str, str]:
    """Returns the versions of what computes; nothing is imported for it.

    Args:
        finetune: That of this package.
    """
    python = ".".join(map(str, sys.version_info[:2]))
    installed = {name: version(name) for name in ("tensorflow", "keras", "numpy")}
    return {"version of finetune": finetune, "version of python": python} | {
        f"version of {name}": number for name, number in installed.items()
    }


def fingerprint(text: str) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keys_of(value: Any, name: str = "") -> dict[str, str]:
    """Returns what nested dicts hold as text, by dotted keys, and of long texts the fingerprint.

    >>> keys_of({"seed": 7, "train": {"epochs": 2, "metrics": ["mae"]}})
    {'seed': '7', 'train.epochs': '2', 'train.metrics': "['mae']"}

    Args:
        value: What a key holds.
        name: The key.
    """
    if isinstance(value, Mapping) and value:
        parts = [keys_of(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    text = str(value)
    return {name: text if len(text) <= _LONGEST else fingerprint(text)}


def check_equal(cluster: Cluster, facts: Sequence[Mapping[str, Any]]) -> None:
    """Checks that what the workers say of themselves is the same.

    Args:
        cluster: The workers.
        facts: What each of them says, in their order.

    Raises:
        FinetuneError: Something differs. Every worker gets the same text.
    """
    names = list(dict.fromkeys(name for each in facts for name in each))
    problems = []
    for name in names:
        values = [each.get(name) for each in facts]
        other = next((index for index, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            text = f"{name}: {_shown(values[0])} at worker 0, {_shown(values[other])} at worker {other}"
            more = sum(value != values[0] for value in values) - 1
            problems.append(text + (f" and others at {more} more" if more else ""))
    if problems:
        shown = problems[:_SHOWN] + ([f"{len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        raise FinetuneError(
            f"All {cluster.workers} workers of a run train the same network, by the same recipe, on the same rows. "
            f"What they were told differs: {'; '.join(shown)}. Begin all of them with the same command, the same files "
            "and the same packages."
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"`{printable(value)}`"
