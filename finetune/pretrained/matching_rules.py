"""Joins the weights of a file with those of a model by all the names that either has."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras

from finetune.groups.layer_tree import Leaf
from finetune.pretrained.formats.weight_file import Tensor
from finetune.pretrained.automatic_names import renumbered, stem, steps


@dataclass(frozen=True)
class Pair:
    """A weight of the model and the weight of the file that belongs to it.

    Attributes:
        leaf: The model's weight.
        tensor: The file's weight.
        how: `name`, `layer and index`, `alias`, `structure` (where Keras or TensorFlow would keep it), `renumbered`
            (`dense_3` for `dense`) or `ending` (`bb/conv/kernel` for `conv/kernel`); then what rules did
            to it: `rename, transpose [1, 0]`.
    """

    leaf: Leaf
    tensor: Tensor
    how: str


_LeafKeys = Callable[[Leaf], Sequence[str]]
_TensorKeys = Callable[[Tensor], Sequence[str]]


def pair(
    leaves: Sequence[Leaf],
    tensors: Sequence[Tensor],
    places: Mapping[str, Sequence[str]],
    renamed: Collection[str] = (),
) -> tuple[list[Pair], dict[str, list[Tensor]]]:
    """Pairs each weight of the model with at most one of the file, the surest kind of name first.

    Names come first where all of a kind agree. Where they do not, structure comes before names: `dense_1` in the file
    may well be `dense_2` in a model that is the second one built in its process.

    Args:
        leaves: The model's weights.
        tensors: The file's weights.
        places: What else each weight of the model may be called, from `finetune.pretrained.structure.places`.
        renamed: Names that somebody chose for this very model; they come first.

    Returns:
        The pairs in the model's order, and the weights of the model that several of the file's claim.
    """
    found: dict[str, Pair] = {}
    disputed: dict[str, list[Tensor]] = {}
    taken: set[int] = set()
    for how, leaf_keys, tensor_keys in _ways(leaves, tensors, places, renamed):
        claims = _claims(
            {leaf.name: leaf_keys(leaf) for leaf in leaves if leaf.name not in found},
            [(tensor, tensor_keys(tensor)) for tensor in tensors if id(tensor) not in taken],
        )
        for leaf in leaves:
            if len(claims[leaf.name]) == 1:
                found[leaf.name] = Pair(leaf, claims[leaf.name][0], how)
                taken.add(id(claims[leaf.name][0]))
            elif claims[leaf.name]:
                disputed[leaf.name] = claims[leaf.name]
    pairs = [found[leaf.name] for leaf in leaves if leaf.name in found]
    open_disputes = {
        name: [t for t in claimants if id(t) not in taken] for name, claimants in disputed.items() if name not in found
    }
    return pairs, open_disputes


def _claims(
    keys: Mapping[str, Sequence[str]], tensors: Sequence[tuple[Tensor, Sequence[str]]]
) -> dict[str, list[Tensor]]:
    """For each weight of the model the tensors that know it by a key which no other weight has."""
    shared = Counter(key for every in keys.values() for key in set(every))
    owner = {key: name for name, every in keys.items() for key in every if shared[key] == 1}
    claims: dict[str, list[Tensor]] = defaultdict(list)
    for tensor, candidates in tensors:
        name = next((owner[key] for key in candidates if key in owner), None)
        if name is not None:
            claims[name].append(tensor)
    return claims


def _ways(
    leaves: Sequence[Leaf], tensors: Sequence[Tensor], places: Mapping[str, Sequence[str]], renamed: Collection[str]
) -> Iterator[tuple[str, _LeafKeys, _TensorKeys]]:
    counts = Counter(id(leaf.owner) for leaf in leaves)
    ours = renumbered(leaf.layer for leaf in leaves)
    theirs = renumbered(_layer(tensor.name) for tensor in tensors)

    def by_index(leaf: Leaf, layer: str) -> str:
        return f"{layer}#{leaf.index}/{counts[id(leaf.owner)]}"

    def numbered(leaf: Leaf) -> list[str]:
        return [f"{ours[leaf.layer]}/{_own(leaf.name)}", by_index(leaf, ours[leaf.layer])]

    def aliases(leaf: Leaf) -> list[str]:
        without_cell = leaf.name.replace("/cell/", "/")  # Keras 2 knew no cells
        return [leaf.name, by_index(leaf, leaf.layer), *_variable_paths(leaf), without_cell]

    def tensor_numbered(tensor: Tensor) -> list[str]:
        layer = theirs[_layer(tensor.name)]
        return [f"{layer}/{_own(tensor.name)}", *_by_index(tensor, layer)]

    agrees = _agreement(leaves, tensors)

    def trusted(tensor: Tensor) -> list[str]:
        known = tensor.name in renamed or agrees(tensor)
        return [tensor.name, *_by_index(tensor, _layer(tensor.name))] if known else []

    yield "name", lambda leaf: [leaf.name, by_index(leaf, leaf.layer)], trusted
    yield "structure", lambda leaf: places.get(leaf.name, ()), lambda tensor: tensor.places
    yield "renumbered", numbered, tensor_numbered
    yield "name", lambda leaf: [leaf.name], lambda tensor: [tensor.name]
    yield "layer and index", lambda leaf: [by_index(leaf, leaf.layer)], lambda t: _by_index(t, _layer(t.name))
    yield "alias", aliases, _aliases
    yield "ending", lambda leaf: list(_endings(leaf.name)), lambda tensor: [a for a in tensor.aliases if a[:2] == "*/"]


def _agreement(leaves: Sequence[Leaf], tensors: Sequence[Tensor]) -> Callable[[Tensor], bool]:
    """Tells of a file's weight whether its layer and all siblings of the like name are in the model."""
    ours = {f"{parent}/{part}" for leaf in leaves for parent, part in steps(leaf.layer)}
    theirs = {step for tensor in tensors for step in steps(_layer(tensor.name))}
    strangers = {(parent, stem(part)) for parent, part in theirs if f"{parent}/{part}" not in ours}
    return lambda tensor: all((parent, stem(part)) not in strangers for parent, part in steps(_layer(tensor.name)))


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def _own(name: str) -> str:
    return name.rpartition("/")[2]


def _by_index(tensor: Tensor, layer: str) -> list[str]:
    return [f"{layer}#{tensor.position[0]}/{tensor.position[1]}"] if tensor.position else []


def _aliases(tensor: Tensor) -> list[str]:
    names = [tensor.name, *tensor.aliases]
    return names + [key for name in names for key in _by_index(tensor, _layer(name))]


def _variable_paths(leaf: Leaf) -> list[str]:
    """Keras' own path of the variable, and what it is below the model's name."""
    path = leaf.variable.path if isinstance(leaf.variable, keras.Variable) else ""
    first, _, below = path.partition("/")
    return [path, below] if "/" in below and first != leaf.name.partition("/")[0] else [path]


def _endings(name: str) -> Iterator[str]:
    parts = name.split("/")
    return (f"*/{'/'.join(parts[i:])}" for i in range(len(parts)))
