"""The rules by which a weight of a file is recognised as a weight of a model, and the order in which they apply.

Every rule gives each weight of the model and each weight of the file some keys; the two belong together where they
share a key. A rule only sees the weights that earlier rules left. The order, from the surest to the weakest:

1. **name**, where the file agrees with the model: the same name, or the same layer and index. Names that the user made
   with `rename` or `transform` always count; a name from the file counts only if the model has that layer and all its
   siblings of the same kind (`dense`, `dense_1`, ...).
2. **structure**: the same location, see `finetune.pretrained.storage_locations`. It comes before doubtful names because
   `dense_1` in the file may well be `dense_2` in a model that is the second one built in its process.
3. **renumbered**: the same name when automatic numbers are counted from zero: `dense_7` is `dense`. Names that a user
   chose have no such number and count as they are. Then the same with Keras' own path of the weight, which names the
   halves of a Bidirectional layer (`forward_lstm_3/lstm_cell`) as files of Keras 2 do.
4. **name**, then **layer and index**: automatic names as they are, where the file has another number of such layers.
5. **alias**: another name that the file or Keras has for the weight.
6. **legacy name**: names of Keras 2 as Keras 3 spells them, without slashes and capitals: `Conv/BatchNorm` for
   `conv_bn`.
7. **ending**: `conv/kernel` for `bb/conv/kernel`, where only one weight of the model ends so.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras

from finetune.groups.layer_tree import Leaf, own_counts
from finetune.pretrained.automatic_names import levels, renumber, without_number
from finetune.pretrained.formats.weight_file import StoredTensor


@dataclass(frozen=True)
class Pair:
    """A weight of the model and the weight of the file that belongs to it.

    Attributes:
        leaf: The model's weight.
        tensor: The file's weight.
        how: Which rule matched them (`name`, `layer and index`, `alias`, `structure`, `renumbered`, `legacy name`
            or `ending`), and
            what the user's rules did to the weight before: `rename, transpose [1, 0]`.
    """

    leaf: Leaf
    tensor: StoredTensor
    how: str


_LeafKeys = Callable[[Leaf], Sequence[str]]
_TensorKeys = Callable[[StoredTensor], Sequence[str]]


def pair_weights(
    leaves: Sequence[Leaf],
    tensors: Sequence[StoredTensor],
    locations: Mapping[str, Sequence[str]],
    chosen_names: Collection[str] = (),
) -> tuple[list[Pair], dict[str, list[StoredTensor]]]:
    """Pairs each weight of the model with at most one of the file.

    Args:
        leaves: The model's weights.
        tensors: The file's weights.
        locations: Locations of each weight of the model, from
            `finetune.pretrained.storage_locations.storage_locations`.
        chosen_names: Names that the user made for this very model, with `rename` or `transform`.

    Returns:
        The pairs in the model's order, and for each weight of the model that several of the file match, these.
    """
    pairs: dict[str, Pair] = {}
    disputed: dict[str, list[StoredTensor]] = {}
    used: set[int] = set()  # ids of tensors: two weights of a file may be equal in all their fields
    # Greedy: what a rule pairs is settled, and no weaker rule sees it.
    for how, leaf_keys, tensor_keys in _rules(leaves, tensors, locations, chosen_names):
        claims = _claims(
            {leaf.name: leaf_keys(leaf) for leaf in leaves if leaf.name not in pairs},
            [(tensor, tensor_keys(tensor)) for tensor in tensors if id(tensor) not in used],
        )
        for leaf in leaves:
            if len(claims[leaf.name]) == 1:
                pairs[leaf.name] = Pair(leaf, claims[leaf.name][0], how)
                used.add(id(claims[leaf.name][0]))
            elif claims[leaf.name]:  # several: neither is better, so none is taken
                disputed[leaf.name] = claims[leaf.name]
    # A weaker rule may have settled a dispute, or have used one of its tensors elsewhere.
    unsettled = {
        name: [tensor for tensor in claimants if id(tensor) not in used]
        for name, claimants in disputed.items()
        if name not in pairs
    }
    return [pairs[leaf.name] for leaf in leaves if leaf.name in pairs], unsettled


def _claims(
    leaf_keys: Mapping[str, Sequence[str]], tensor_keys: Sequence[tuple[StoredTensor, Sequence[str]]]
) -> dict[str, list[StoredTensor]]:
    """Returns, for each weight of the model, the tensors that have one of its keys.

    A key that two weights of the model share identifies neither. Of a tensor's keys the first that identifies a weight
    counts.
    """
    counts = Counter(key for keys in leaf_keys.values() for key in set(keys))
    owner = {key: name for name, keys in leaf_keys.items() for key in keys if counts[key] == 1}
    claims: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensor, keys in tensor_keys:
        name = next((owner[key] for key in keys if key in owner), None)
        if name is not None:
            claims[name].append(tensor)
    return claims


def _rules(
    leaves: Sequence[Leaf],
    tensors: Sequence[StoredTensor],
    locations: Mapping[str, Sequence[str]],
    chosen_names: Collection[str],
) -> Iterator[tuple[str, _LeafKeys, _TensorKeys]]:
    """Yields the rules in their order: the name of the rule, the keys of the model's weights, and of the file's."""
    # The key for "weight 0 of the 2 of layer `dense`" is `dense#0/2`. The count is part of it: a file with another
    # number of weights for a layer has another order, too.
    counts = own_counts(leaves)
    # Ranks of automatic names, each counted on its side: the second `dense` here is the second `dense` there.
    model_numbers = renumber(leaf.layer for leaf in leaves)
    path_numbers = renumber(_layer(_variable_paths(leaf)[-1]) for leaf in leaves)
    file_numbers = renumber(_layer(tensor.name) for tensor in tensors)

    def leaf_index(leaf: Leaf, layer: str) -> str:
        return f"{layer}#{leaf.index}/{counts[id(leaf.owner)]}"

    def renumbered_leaf(leaf: Leaf) -> list[str]:
        layer = model_numbers[leaf.layer]
        return [f"{layer}/{_last(leaf.name)}", leaf_index(leaf, layer)]

    def renumbered_path(leaf: Leaf) -> list[str]:
        path = _variable_paths(leaf)[-1]
        return [f"{path_numbers[_layer(path)]}/{_last(path)}"]

    def renumbered_tensor(tensor: StoredTensor) -> list[str]:
        layer = file_numbers[_layer(tensor.name)]
        return [f"{layer}/{_last(tensor.name)}", *_tensor_index(tensor, layer)]

    def leaf_aliases(leaf: Leaf) -> list[str]:
        # What a file calls an alias may be the plain name here, so names and indices are among the aliases.
        without_cell = leaf.name.replace("/cell/", "/")  # recurrent layers of Keras 2 had no cell inside
        return [leaf.name, leaf_index(leaf, leaf.layer), *_variable_paths(leaf), without_cell]

    def legacy_leaf(leaf: Leaf) -> list[str]:
        layer = in_keras3(leaf.layer)
        return [f"{layer}/{_last(leaf.name)}", leaf_index(leaf, layer)]

    def legacy_tensor(tensor: StoredTensor) -> list[str]:
        names = [name for name in (tensor.name, *tensor.aliases) if not name.startswith("*/")]
        layers = [in_keras3(_layer(name)) for name in names]
        by_name = [f"{layer}/{_last(name)}" for layer, name in zip(layers, names, strict=True)]
        return by_name + [key for layer in layers for key in _tensor_index(tensor, layer)]

    agrees = _agreement(leaves, tensors)

    def trusted(tensor: StoredTensor) -> list[str]:
        is_trusted = tensor.name in chosen_names or agrees(tensor)
        return [tensor.name, *_tensor_index(tensor, _layer(tensor.name))] if is_trusted else []

    # The order matters; the module docstring gives the reason for each place.
    yield "name", lambda leaf: [leaf.name, leaf_index(leaf, leaf.layer)], trusted
    yield "structure", lambda leaf: locations.get(leaf.name, ()), lambda tensor: tensor.locations
    yield "renumbered", renumbered_leaf, renumbered_tensor
    yield "renumbered", renumbered_path, renumbered_tensor
    yield "name", lambda leaf: [leaf.name], lambda tensor: [tensor.name]
    yield "layer and index", lambda leaf: [leaf_index(leaf, leaf.layer)], lambda t: _tensor_index(t, _layer(t.name))
    yield "alias", leaf_aliases, _tensor_aliases
    yield "legacy name", legacy_leaf, legacy_tensor
    yield "ending", _endings, lambda tensor: [alias for alias in tensor.aliases if alias.startswith("*/")]


def _agreement(leaves: Sequence[Leaf], tensors: Sequence[StoredTensor]) -> Callable[[StoredTensor], bool]:
    """Returns a function that says of a file's weight whether its layer and all like siblings are in the model.

    A file with `dense_1` and `dense_2` does not agree with a model with `dense` and `dense_1`: its `dense_2` is a
    stranger, so its `dense_1` is likely the model's `dense`.
    """
    # Every level counts: for `bb/dense_1/kernel` both `bb` among the top layers and `dense_1` in `bb` must agree.
    in_model = {f"{parent}/{part}" for leaf in leaves for parent, part in levels(leaf.layer)}
    in_file = {level for tensor in tensors for level in levels(_layer(tensor.name))}
    strangers = {(parent, without_number(part)) for parent, part in in_file if f"{parent}/{part}" not in in_model}
    return lambda tensor: all(
        (parent, without_number(part)) not in strangers for parent, part in levels(_layer(tensor.name))
    )


def in_keras3(layer: str) -> str:
    """Spells a layer's name as Keras 3 does, which allows no slash: `Conv/BatchNorm` -> `conv_bn`."""
    return layer.lower().replace("/", "_").replace("batchnorm", "bn")


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _tensor_index(tensor: StoredTensor, layer: str) -> list[str]:
    return [f"{layer}#{tensor.position[0]}/{tensor.position[1]}"] if tensor.position else []


def _tensor_aliases(tensor: StoredTensor) -> list[str]:
    names = [tensor.name, *tensor.aliases]
    return names + [key for name in names for key in _tensor_index(tensor, _layer(name))]


def _endings(leaf: Leaf) -> list[str]:
    parts = leaf.name.split("/")
    return [f"*/{'/'.join(parts[i:])}" for i in range(len(parts))]


def _variable_paths(leaf: Leaf) -> list[str]:
    """Returns Keras' own path of the variable, and that path without the model's name."""
    # `model/dense/kernel`. Object graphs and older files have it, with or without the model in front.
    path = leaf.variable.path if isinstance(leaf.variable, keras.Variable) else ""
    first, _, below = path.partition("/")
    return [path, below] if "/" in below and first != leaf.name.partition("/")[0] else [path]
