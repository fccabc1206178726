"""Names that Keras makes from classes, and the numbers it counts up as a process goes on."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def stem(name: str) -> str:
    """Returns the name without the number at its end: `dense` for `dense_7`."""
    return re.sub(r"_\d+$", "", name)


def class_name(item: object) -> str:
    """Returns the name that Keras makes from an object's class: `multi_head_attention`."""
    return _to_snake_case(type(item).__name__)


def _to_snake_case(name: str) -> str:
    """Keras' own rule, which it does not hand out; test_automatic_names.py holds it to real layers."""
    spaced = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", spaced).lower()


def is_counted(layer: "keras.layers.Layer") -> bool:
    """Whether Keras made the layer's name from its class and a count: `dense_7`, or `dense` for the first."""
    # Bidirectional makes the names of its halves from an automatic one.
    return stem(layer.name).removeprefix("forward_").removeprefix("backward_") == class_name(layer)


def is_automatic(name: str) -> bool:
    """Whether Keras gives such a name to one of its own layers by itself."""
    return stem(name) in _class_names()


@cache
def _class_names() -> frozenset[str]:
    """Read from the listing that is `keras/layers/__init__.py`: importing it would take seconds."""
    spec = find_spec("keras")
    assert spec is not None
    listing = Path(str(spec.origin)).parent / "layers" / "__init__.py"
    listed = re.findall(r"\bas\s+(\w+)", listing.read_text(encoding="utf-8"))
    return frozenset(_to_snake_case(name) for name in (*listed, "Functional", "Sequential"))


def renumbered(layers: Iterable[str]) -> dict[str, str]:
    """Counts automatic names from zero below each layer, and notes how many there are.

    Two models built by the same code agree in these names, whatever was built before them.

    >>> renumbered(["bb/dense_7", "bb/dense_9", "bb/head"])
    {'bb/dense_7': 'bb/dense(0/2)', 'bb/dense_9': 'bb/dense(1/2)', 'bb/head': 'bb/head'}
    """
    every = list(dict.fromkeys(layers))
    siblings: dict[tuple[str, str], set[int]] = defaultdict(set)
    for parent, part in (step for layer in every for step in steps(layer)):
        siblings[parent, stem(part)].add(_number(part))

    def count(parent: str, part: str) -> str:
        known = siblings[parent, stem(part)]
        return f"{stem(part)}({sorted(known).index(_number(part))}/{len(known)})" if is_automatic(part) else part

    return {layer: "/".join(count(*step) for step in steps(layer)) for layer in every}


def steps(layer: str) -> Iterator[tuple[str, str]]:
    """Yields each part of a layer's name after the name of the layer that holds it."""
    parts = layer.split("/")
    return (("/".join(parts[:i]), part) for i, part in enumerate(parts))


def _number(part: str) -> int:
    found = re.search(r"_(\d+)$", part)
    return int(found[1]) if found else 0
