"""Groups without a list: one for each layer, or one for each block of layers."""

import re
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

from finetune.groups.layer_tree import LayerTree, Leaf
from finetune.groups.selectors import Selector, as_tree, paths_down


def selectors_by_layer(tree: LayerTree | Any) -> tuple[Selector, ...]:
    """Makes one group for each layer that has trainable weights, input to output.

    Nested models and lists of layers are opened; a layer made of layers (attention, bidirectional) stays one.

    Args:
        tree: The model's layer tree, or the model.
    """
    units = _units(as_tree(tree))
    return tuple(Selector(name, prefixes=(unit,)) for unit, name in zip(units, _usable_names(units), strict=True))


def selectors_by_block(tree: LayerTree | Any) -> tuple[Selector, ...]:
    """Makes one group for each block of layers, input to output.

    The layers' names tell the blocks: `block_1_expand` and `block_1_project` are `block_1`, all of `blocks/0` is one,
    and a normalization layer without a block of its own goes with the layer before it. A layer whose name tells
    nothing is a block.

    Args:
        tree: The model's layer tree, or the model.
    """
    blocks: list[tuple[str, list[str]]] = []
    for unit in _units(as_tree(tree)):
        name, is_sure = _block_of(unit)
        same = next((members for block, members in reversed(blocks) if block == name), None) if is_sure else None
        if same is None and blocks and (blocks[-1][0] == name or _follows(unit, blocks[-1][1][-1])):
            same = blocks[-1][1]
        if same is None:
            blocks.append((name, same := []))
        same.append(unit)
    names = _usable_names([name if len(units) > 1 or _block_of(units[0])[1] else units[0] for name, units in blocks])
    return tuple(Selector(name, prefixes=tuple(units)) for name, (_, units) in zip(names, blocks, strict=True))


_BLOCK = re.compile(
    r"(.*(?:block|layer|stage|unit|cell|module|bottleneck|stack|level|fire)s?[_/.-]?\d+[a-z]?)(?:[_/.-]|$)",
    re.I,
)
_IN_LIST = re.compile(r"((?:.*?/)?\d+)/")
_NUMBERED = re.compile(r"(.*?(?:_\d+|[a-z]\d+(?!d(?:_|$)))[a-z]?)(?:_|$)", re.I)  # `conv2d` has no number
_NORM = r"(?:bn|gn|ln|norm|normalization|batch_?norm(?:alization)?|(?:layer|group|rms)_?norm(?:alization)?)"
_ONLY_NORM = re.compile(rf"{_NORM}_?\d*", re.I)
_ROLE = re.compile(r"(.+?)_(?:conv|dwconv|expand|project|depthwise|pointwise|reduce)", re.I)


def _units(tree: LayerTree) -> list[str]:
    """Returns the names of the layers with trainable weights, nested models and lists opened."""

    def unit(leaf: Leaf) -> str:
        return next((path for path in paths_down(leaf.name) if path not in tree.containers), leaf.name)

    return list(dict.fromkeys(unit(leaf) for leaf in tree.trainable))


def _block_of(unit: str) -> tuple[str, bool]:
    """Returns the name of the layer's block, and whether it is sure to name a block wherever it appears."""
    if match := _BLOCK.match(unit) or _IN_LIST.match(unit):
        return match[1], True
    parent, slash, name = unit.rpartition("/")
    name = re.sub(rf"^{_NORM}_(?=.)|(?<=.)_{_NORM}$", "", name, flags=re.I)
    match = _NUMBERED.match(name) or _ROLE.fullmatch(name)
    return f"{parent}{slash}{match[1] if match else name}", False


def _follows(unit: str, before: str) -> bool:
    """Whether the layer is a normalization without a name of its own, beside the layer before it."""
    parent, slash, name = unit.rpartition("/")
    return _ONLY_NORM.fullmatch(name) is not None and before.startswith(f"{parent}{slash}") and not _block_of(unit)[1]


def _usable_names(names: Sequence[str]) -> list[str]:
    usable = [re.sub(r"[^A-Za-z0-9_.-]", "-", name.replace("/", ".")) for name in names]
    unique: dict[str, None] = {}
    for name in usable:
        unique[next(n for n in chain([name], (f"{name}-{k}" for k in count(2))) if n not in unique)] = None
    return list(unique)
