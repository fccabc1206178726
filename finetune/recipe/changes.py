"""What differs between two recipes as they are written in run folders, key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_NOTHING = "nothing"


@dataclass(frozen=True)
class Change:
    """A key with two values.

    Attributes:
        key: The keys that lead to it, separated by dots.
        was: The former value, `nothing` where there was none.
        now: The present value, likewise.
    """

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.key}`: was {self.was}, is {self.now}"


def changes_of_text(before: str, now: str) -> list[Change]:
    """Returns what differs between two recipes, given as YAML."""
    return changes_of(yaml.safe_load(before), yaml.safe_load(now))


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Returns what differs between two nested mappings, in the order of their keys."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key, _NOTHING) != new.get(key, _NOTHING)]
    return [Change(key, old.get(key, _NOTHING), new.get(key, _NOTHING)) for key in keys]


def _flat(data: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns the values of nested mappings and lists by their dotted keys."""
    if isinstance(data, Mapping):
        items: Sequence[tuple[Any, Any]] = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    else:
        return [(prefix, data)]
    return [pair for key, value in items for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
