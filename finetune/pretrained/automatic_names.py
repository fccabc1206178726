"""Recognises the names that Keras makes for layers without one, and compares them whatever their numbers are.

Keras names a layer after its class in snake case, and counts the class over the whole process: the first `Dense` is
`dense`, the next `dense_1`. A model built a second time in a process therefore has other names than the first:
`dense_2`, `dense_3`. What two models built by the same code share is the order of these numbers. A name that the user
chose says more: `block_2` is never the `block_1` of a file.

No module that a file without TensorFlow needs may import Keras, which takes seconds; this one reads Keras' rule from
its source instead. `tests/pretrained/test_automatic_names.py` compares the result with real layers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def without_number(name: str) -> str:
    """Returns the name without the number at its end: `dense` for `dense_7`."""
    return re.sub(r"_\d+$", "", name)


def automatic_name(item: object) -> str:
    """Returns the name that Keras makes from an object's class: `multi_head_attention`."""
    return _to_snake_case(type(item).__name__)


def _to_snake_case(name: str) -> str:
    # As Keras does in `utils/naming.py`. `MultiHeadAttention` -> `multi_head_attention`, `LSTM` -> `lstm`.
    spaced = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", spaced).lower()


def has_automatic_name(layer: "keras.layers.Layer") -> bool:
    """Whether Keras made the layer's name from its class and a count: `dense_7`, or `dense` for the first."""
    return _without_direction(without_number(layer.name)) == automatic_name(layer)


def _without_direction(name: str) -> str:
    """Returns `lstm` for `forward_lstm`: Bidirectional names its halves after the layer that it wraps."""
    return name.removeprefix("forward_").removeprefix("backward_")


def is_automatic_name(name: str) -> bool:
    """Whether the name is one that Keras makes for its own layers: `dense_7`, `forward_lstm`, but not `block_1`."""
    return _without_direction(without_number(name)) in _class_names()


@cache
def _class_names() -> frozenset[str]:
    spec = find_spec("keras")
    assert spec is not None
    # The public listing has a line `from ... import Dense as Dense` for each class.
    listing = Path(str(spec.origin)).parent / "layers" / "__init__.py"
    listed = re.findall(r"\bas\s+(\w+)", listing.read_text(encoding="utf-8"))
    return frozenset(_to_snake_case(name) for name in (*listed, "Functional", "Sequential"))


def renumber(layers: Iterable[str]) -> dict[str, str]:
    """Replaces the number in each automatic name by its rank among its siblings, and their count.

    Two models built by the same code agree in these names, whatever was built before them. The count is part of the
    name so that models with different numbers of such layers do not agree by chance.

    >>> renumber(["bb/dense_7", "bb/dense_9", "bb/head"])
    {'bb/dense_7': 'bb/dense(0/2)', 'bb/dense_9': 'bb/dense(1/2)', 'bb/head': 'bb/head'}

    Args:
        layers: Names of layers, with `/` between a layer and those inside it.

    Returns:
        The new name of each.
    """
    names = list(dict.fromkeys(layers))
    # Counted below each parent, since Keras numbers the layers of a nested model along with all others.
    siblings: dict[tuple[str, str], set[int]] = defaultdict(set)  # numbers by (parent, name without number)
    for parent, part in (level for name in names for level in levels(name)):
        siblings[parent, without_number(part)].add(_number(part))

    def ranked(parent: str, part: str) -> str:
        if not is_automatic_name(part):
            return part
        # As numbers: `dense_10` comes after `dense_9`.
        numbers = sorted(siblings[parent, without_number(part)])
        return f"{without_number(part)}({numbers.index(_number(part))}/{len(numbers)})"

    return {name: "/".join(ranked(*level) for level in levels(name)) for name in names}


def levels(name: str) -> Iterator[tuple[str, str]]:
    """Yields each part of a layer's name after the name of its parent: `a/b` gives `("", "a")`, `("a", "b")`."""
    parts = name.split("/")
    return (("/".join(parts[:i]), part) for i, part in enumerate(parts))


def _number(part: str) -> int:
    ending = re.search(r"_(\d+)$", part)
    return int(ending[1]) if ending else 0  # `dense` is the first, before `dense_1`
