"""Groups without a list of selectors: one for each layer, or one for each block of layers.

A strategy maps a layer tree to the prefixes of each group, by the group's name, input to output. The names consist of
letters, digits, `_` and `-`: they can be written into a recipe, into `--set groups.<name>.learning_rate=...` and into a
regular expression as they are.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, count

from finetune.groups.layer_tree import LayerTree, Leaf, paths_down

Prefixes = dict[str, tuple[str, ...]]


def by_layer(tree: LayerTree) -> Prefixes:
    """Makes a group of each layer that has trainable weights.

    Nested models and lists of layers are opened; a layer made of layers (attention, bidirectional) stays whole.
    """
    units = _units(tree)
    return {name: (unit,) for name, unit in zip(_usable_names(units), units, strict=True)}


def by_block(tree: LayerTree) -> Prefixes:
    """Makes a group of each block of layers.

    Blocks are read from the names of the layers: `block_1_expand` and `block_1_project` are `block_1`, all of
    `blocks/0` is one block, and a normalization layer whose name has no block goes with the layer before it. A layer
    whose name says nothing is a block by itself.
    """
    blocks: list[tuple[str, list[str]]] = []
    for unit in _units(tree):
        name, is_sure = _block_of(unit)
        # A sure name (`block_1`, an element of a list) is the same block wherever it comes back, as in two towers that
        # take turns. Any other name (`conv2`) joins only the block directly before it.
        block = next((members for known, members in reversed(blocks) if known == name), None) if is_sure else None
        if block is None and blocks and (blocks[-1][0] == name or _is_norm_after(unit, blocks[-1][1][-1])):
            block = blocks[-1][1]
        if block is None:
            blocks.append((name, block := []))
        block.append(unit)
    # A block of a single layer keeps the full name of the layer, unless its name is sure to be that of a block.
    names = _usable_names([name if len(units) > 1 or _block_of(units[0])[1] else units[0] for name, units in blocks])
    return {name: tuple(units) for name, (_, units) in zip(names, blocks, strict=True)}


STRATEGIES: dict[str, Callable[[LayerTree], Prefixes]] = {"layer": by_layer, "block": by_block}

# -- How the names of layers are read: `block_1_expand`, `conv2_block1_1_conv`, `block1a_dwconv`, `blocks/0/dense` -----

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
    """Returns the name of the layer's block, and whether that name means the same block wherever it appears."""
    if match := _BLOCK.match(unit) or _IN_LIST.match(unit):
        return match[1], True
    parent, slash, name = unit.rpartition("/")
    name = re.sub(rf"^{_NORM}_(?=.)|(?<=.)_{_NORM}$", "", name, flags=re.I)
    match = _NUMBERED.match(name) or _ROLE.fullmatch(name)
    return f"{parent}{slash}{match[1] if match else name}", False


def _is_norm_after(unit: str, before: str) -> bool:
    """Whether the layer is a normalization without a block in its name, in the same model as the layer before it."""
    parent, slash, name = unit.rpartition("/")
    return _ONLY_NORM.fullmatch(name) is not None and before.startswith(f"{parent}{slash}") and not _block_of(unit)[1]


def _usable_names(names: Sequence[str]) -> list[str]:
    """Replaces what a group's name may not hold by `-`, and numbers names that become equal by that."""
    unique: dict[str, None] = {}
    for name in names:
        usable = re.sub(r"[^A-Za-z0-9_-]", "-", name).strip("-") or "layer"
        unique[next(n for n in chain([usable], (f"{usable}-{k}" for k in count(2))) if n not in unique)] = None
    return list(unique)
