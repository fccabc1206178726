"""Groups without a list of selectors: one for each layer, or one for each block of layers.

A strategy maps a layer tree to the prefixes of each group, by the group's name, input to output. The names consist of
letters, digits, `_` and `-`: they can be written into a recipe, into `--set groups.<name>.learning_rate=...` and into a
regular expression as they are.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, count

import keras

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

    A layer that holds a stack of like layers, as the encoder of a transformer does, is opened: each layer of the stack
    is a block. All embeddings together are one. Otherwise blocks are read from the names of the layers:
    `block_1_expand` and `block_1_project` are `block_1`, all of `blocks/0` is one block, and a normalization layer
    whose name has no block goes with the layer before it. A layer whose name says nothing is a block by itself.
    """
    blocks: list[tuple[str, list[str]]] = []
    units = _units(tree, stacks := _stacks(tree))
    embeddings, whole = _embeddings(tree, units), _whole_blocks(tree, units)
    for unit in units:
        name, is_sure = _block_of(unit)
        if unit in embeddings:
            name, is_sure = embeddings[unit], False
        elif name in stacks or (unit in whole and not is_sure):
            name, is_sure = unit, unit in whole  # `stage_0` is a stack of blocks, and no block
        # A sure name (`block_1`, an element of a list) is the same block wherever it comes back, as in two towers that
        # take turns. Any other name (`conv2`) joins only the block directly before it.
        block = next((members for known, members in reversed(blocks) if known == name), None) if is_sure else None
        closes = not is_sure and blocks and _is_norm_after(unit, blocks[-1][1][-1])
        if block is None and blocks and (closes or blocks[-1][0] == name):
            block = blocks[-1][1]
        if block is None:
            blocks.append((name, block := []))
        block.append(unit)
    # A block of a single layer keeps the full name of the layer, unless its name is sure to be that of a block.
    names = _usable_names([name if len(units) > 1 or _block_of(units[0])[1] else units[0] for name, units in blocks])
    return {name: tuple(units) for name, (_, units) in zip(names, blocks, strict=True)}


STRATEGIES: dict[str, Callable[[LayerTree], Prefixes]] = {"layer": by_layer, "block": by_block}

# -- What a network is made of -----------------------------------------------------------------------------------------

_ELEMENT = re.compile(r"(.*?)[_.-]?\d+[a-z]?")  # `block_3`, `layers_0`, `stage2b`, the `3` of `blocks/3`
_ATTENTION = ({"query", "key", "value"}, {"query_dense", "key_dense", "value_dense"})
_EMBEDDING = re.compile(r".*embed.*|(.*_)?(cls|class|dist|distillation|mask|register)_tokens?", re.I)


def _units(tree: LayerTree, opened: frozenset[str] = frozenset()) -> list[str]:
    """Returns the names of the layers with trainable weights; nested models, lists and what is `opened` are opened."""

    def unit(leaf: Leaf) -> str:
        paths = paths_down(leaf.name)
        return next((path for path in paths if path not in tree.containers and path not in opened), leaf.name)

    return list(dict.fromkeys(unit(leaf) for leaf in tree.trainable))


def _stacks(tree: LayerTree) -> frozenset[str]:
    """Returns the layers that mainly consist of a stack: numbered parts, or a list of parts, made of layers themselves.

    The stack may be deeper inside, as in a layer that holds an encoder. A block is no stack, though it may hold
    numbered parts deeper inside, such as the experts of a mixture.
    """
    below = _weights_below(tree)
    stacks: set[str] = set()

    def visit(path: str, is_element: bool) -> bool:
        parts = Counter(part for name in below[path] if (part := _part_of(name, path)) in below)
        elements = _elements([part for part in parts if _is_made_of_layers(part, below[part])])
        inside = {part: visit(part, part in elements) for part in parts}
        half = len(below[path]) / 2
        is_stack = sum(parts[part] for part in elements) > half
        is_stack = is_stack or (not is_element and any(inside[part] and parts[part] > half for part in parts))
        if is_stack:
            stacks.add(path)
        return is_stack

    units = _units(tree)
    elements = _elements(units)
    for unit in units:
        if unit in below:
            visit(unit, unit in elements)
    return frozenset(stacks)


def _whole_blocks(tree: LayerTree, units: Sequence[str]) -> frozenset[str]:
    """Returns the layers that are made of layers and have numbered siblings of that kind: `encoder_0_1`."""
    below = _weights_below(tree)
    return _elements([unit for unit in units if unit in below and _is_made_of_layers(unit, below[unit])])


def _weights_below(tree: LayerTree) -> dict[str, list[str]]:
    """Returns the names of the trainable weights below each layer, by the name of the layer."""
    below: dict[str, list[str]] = defaultdict(list)
    for leaf in tree.trainable:
        for path in paths_down(leaf.layer) if leaf.layer else ():
            below[path].append(leaf.name)
    return below


def _part_of(name: str, path: str) -> str:
    """Returns the name of the layer directly below `path` that holds a weight, `encoder/blocks/0` for a list."""
    parts = name[len(path) + 1 :].split("/")
    return "/".join([path, *parts[: 2 if len(parts) > 1 and parts[1].isdigit() else 1]])


def _elements(paths: Sequence[str]) -> frozenset[str]:
    """Returns those of the layers whose names differ from the name of another layer beside them only by a number."""
    alike: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        parent, _, name = path.rpartition("/")
        if match := _ELEMENT.fullmatch(name):
            alike[f"{parent}/{match[1]}"].append(path)
    return frozenset(chain.from_iterable(elements for elements in alike.values() if len(elements) > 1))


def _is_made_of_layers(path: str, names: Sequence[str]) -> bool:
    """Whether there are layers inside a layer; attention does not count, two of them in a decoder are no stack."""
    inside = [name[len(path) + 1 :].split("/") for name in names]
    parts = {part for part, *further in inside if further}
    return bool(parts) and not any(projections <= parts for projections in _ATTENTION)


def _embeddings(tree: LayerTree, units: Sequence[str]) -> dict[str, str]:
    """Returns the layers that embed, by their names, each with the name of the group of all of them in its model."""
    lookups = {leaf.layer for leaf in tree.trainable if isinstance(leaf.owner, keras.layers.Embedding)}
    embed = [unit for unit in units if unit in lookups or _EMBEDDING.fullmatch(unit.rpartition("/")[2])]
    return {unit: unit.rpartition("/")[0] + "/embeddings" if "/" in unit else "embeddings" for unit in embed}


# -- How the names of layers are read: `block_1_expand`, `conv2_block1_1_conv`, `block1a_dwconv`, `blocks/0/dense` -----

_BLOCK = re.compile(
    r"(.*(?:block|layer|stage|unit|cell|module|bottleneck|stack|level|fire)s?[_/.-]?\d+[a-z]?)(?:[_/.-]|$)",
    re.I,
)
_IN_LIST = re.compile(r"((?:.*?/)?\d+)/")
_NUMBERED = re.compile(r"(.*?(?:_\d+|[a-z]\d+(?!d(?:_|$)))[a-z]?)(?:_|$)", re.I)  # `conv2d` has no number
_NORM = r"(?:bn|gn|ln|norm|normalization|batch_?norm(?:alization)?|(?:layer|group|rms)_?norm(?:alization)?)"
# `encoder_layer_norm` and `final_norm` close the last block of a transformer.
_ONLY_NORM = re.compile(rf"(?:(?:\w+_)?(?:encoder|decoder|final|post|output|last)_)?{_NORM}_?\d*", re.I)
# Parts of a block that are named in front of its number, or with a number of their own.
_PART = re.compile(r"_(?:dw|pw)(?=_\d+(?:_|$))|_squeeze_excite(?:_.*)?$", re.I)
_ROLE = re.compile(r"(.+?)_(?:conv|dwconv|expand|project|depthwise|pointwise|reduce|dense)", re.I)


def _block_of(unit: str) -> tuple[str, bool]:
    """Returns the name of the layer's block, and whether that name means the same block wherever it appears."""
    if match := _BLOCK.match(unit) or _IN_LIST.match(unit):
        return match[1], True
    parent, slash, name = unit.rpartition("/")
    name = re.sub(rf"^{_NORM}_(?=.)|(?<=.)_{_NORM}$", "", name, flags=re.I)
    whole = _PART.sub("", name)
    match = _NUMBERED.match(whole) or (_ROLE.fullmatch(name) if whole == name else None)
    return f"{parent}{slash}{match[1] if match else whole}", False


def _is_norm_after(unit: str, before: str) -> bool:
    """Whether the layer is a normalization without a block in its name, in the same model as the layer before it."""
    parent, slash, name = unit.rpartition("/")
    return _ONLY_NORM.fullmatch(name) is not None and before.startswith(f"{parent}{slash}")


def _usable_names(names: Sequence[str]) -> list[str]:
    """Replaces what a group's name may not hold by `-`, and numbers names that become equal by that."""
    unique: dict[str, None] = {}
    for name in names:
        usable = re.sub(r"[^A-Za-z0-9_-]", "-", name).strip("-") or "layer"
        unique[next(n for n in chain([usable], (f"{usable}-{k}" for k in count(2))) if n not in unique)] = None
    return list(unique)
