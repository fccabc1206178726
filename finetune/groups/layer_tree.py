"""Stable, unique names for every weight of a model.

Two walks lead to the same result, a `LayerTree`: through the layers of a Keras model, and through the attributes of a
`tf.Module` or a loaded SavedModel. Readers who only want to know what a name looks like can stop after `layer_tree`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, count
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, counted, quote
from finetune.groups.forgotten_freezing import is_freezing_forgotten
from finetune.keras_private import creation_number, is_trackable, layer_variables, sublayers
from finetune.variables import tf_variable, variable_path

# What a loaded SavedModel or a Keras layer holds beside its parts: copies of the weights, and bookkeeping.
_OPAQUE = re.compile(r"signatures|keras_api|variables|(non_)?trainable_variables|_all_variables|regularization_losses")
_AUTOMATIC = re.compile(r"[Vv]ariable(_\d+)?")
_NOT_WEIGHTS = re.compile(r"_self_.*|_?optimizer|save_counter")
_KERAS_BOOKS = re.compile(r"_layers|_tracker|_tracked|_(non_)?trainable_variables|_self_.*")


@dataclass(frozen=True)
class Leaf:
    """A weight of a model and its place in the layer tree.

    Attributes:
        name: Unique name, e.g. `backbone/conv1/kernel`: layer names below the root, then the name of the variable.
        layer: Name of the layer that owns it, `backbone/conv1`; empty for a weight of the root itself.
        variable: The `keras.Variable` or `tf.Variable`.
        trainable: Whether it was created trainable, whatever is frozen now.
        owner: The layer or module object that owns it.
        index: Its position among the weights of the owner itself, as Keras saves them (trainable weights first).
        frozen_by: Why it stays frozen in a group that is trained: what other code froze before the groups were
            resolved. Empty in a layer tree, and where nothing froze it.
        came_frozen: Whether it is inside a layer that came with `trainable=False`, though Keras trains it.
    """

    name: str
    layer: str
    variable: Any
    trainable: bool
    owner: Any
    index: int
    frozen_by: str = ""
    came_frozen: bool = False

    # At a prompt a dataclass would print the values of all weights; so would what holds leaves.
    def __repr__(self) -> str:
        return f"Leaf({self.name}, {tuple(self.variable.shape)})"


@dataclass(frozen=True)
class LayerTree:
    """All weights of a model, in the model's order.

    Attributes:
        leaves: Every weight once; trainable ones among them in the order of `model.trainable_variables` when
            nothing is frozen.
        layers: Names of the layers in `model.layers`, in the same order (input layers included).
        containers: Names below which each layer counts by itself: nested models, and lists or dicts of layers.
    """

    leaves: tuple[Leaf, ...]
    layers: tuple[str, ...]
    containers: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"LayerTree({counted(len(self.leaves), 'weight')} in {quote(self.layers)})"

    @cached_property
    def trainable(self) -> tuple[Leaf, ...]:
        """The leaves that were created trainable, in the order of `model.trainable_variables`."""
        return tuple(leaf for leaf in self.leaves if leaf.trainable)

    @cached_property
    def by_creation(self) -> tuple[Leaf, ...]:
        """The leaves of `trainable` in the order in which their variables were made: how TF1 listed them.

        Keras lists the layers of a functional model by their depth in the graph. Where branches meet, that is another
        order than that of the lines of code which made the layers.
        """
        return tuple(sorted(self.trainable, key=lambda leaf: creation_number(tf_variable(leaf.variable))))

    @cached_property
    def by_name(self) -> dict[str, Leaf]:
        """The leaves by name."""
        return {leaf.name: leaf for leaf in self.leaves}


def layer_tree(model: Any) -> LayerTree:
    """Names every weight of a model by its place in it.

    The names are unique and stay the same when the model is saved and loaded, cloned or built again, and whatever
    is frozen. Layers count by their `name`; a layer that Keras named automatically and that a subclassed layer or
    model holds counts by the attribute that holds it (`encoder`, `blocks/0`). A repeated name gets `~1`, `~2`.

    Args:
        model: A built Keras model or layer, a `tf.Module`, or what `hub.load` or `tf.saved_model.load` returned.

    Raises:
        GroupError: `model` is none of these, or has no weights yet.
    """
    if isinstance(model, keras.layers.Layer):
        return _keras_tree(model)
    if is_trackable(model):
        return _module_tree(model)
    raise GroupError(
        "A layer tree needs a Keras model, a `tf.Module` or a loaded SavedModel. "
        f"Received: `{model!r}` of type `{type(model).__name__}`. Load it first, e.g. with `keras.models.load_model`."
    )


def layers_in_order(root: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns all layers below a model, each before its parts, in the model's order; those without weights, too."""
    layers: dict[int, keras.layers.Layer] = {}

    def visit(layer: keras.layers.Layer) -> None:
        for child in _children(layer):
            if id(child) not in layers:
                layers[id(child)] = child
                visit(child)

    visit(root)
    return list(layers.values())


def own_counts(leaves: Iterable[Leaf]) -> dict[int, int]:
    """Returns how many weights each owner has itself, by its id; those that it shares with another owner count, too."""
    leaves = list(leaves)
    counts = Counter(id(leaf.owner) for leaf in leaves)
    for owner in {id(leaf.owner): leaf.owner for leaf in leaves}.values():
        if isinstance(owner, keras.layers.Layer):
            counts[id(owner)] = max(counts[id(owner)], sum(map(len, layer_variables(owner))))
    return dict(counts)


def paths_down(name: str) -> list[str]:
    """Returns the paths that lead down to a name: `a`, `a/b`, `a/b/c` for `a/b/c`."""
    return list(accumulate(name.split("/"), _join))


# Keras


def _keras_tree(root: keras.layers.Layer) -> LayerTree:
    _require_built(root)
    containers: set[str] = set()
    walked = {id(leaf.variable): leaf for leaf in _walk_layer(root, "", containers, set(), not _is_graph(root))}
    leaves = [walked.get(id(weight)) or _stray(root, weight, index) for index, weight in enumerate(root.weights)]
    names = {id(child): name for child, name in _named_children(root, not _is_graph(root))}
    layers = root.layers if isinstance(root, keras.Model) else _children(root)
    return LayerTree(_uniquely_named(leaves), tuple(names[id(layer)] for layer in layers), frozenset(containers))


def _require_built(root: keras.layers.Layer) -> None:
    waiting = [] if root.built else [layer for layer in sublayers(root, include_self=True) if _waits_for_weights(layer)]
    if waiting or not (root.built or root.weights):
        raise GroupError(
            f"A layer tree needs a model that has its weights, and `{root.name}` is not built yet. Call it once on a "
            "batch, `model(batch)`, or give it a shape: `model.build(input_shape)` or a first `keras.Input`."
        )
    if not root.weights:
        raise GroupError(f"A layer tree needs weights, and `{root.name}` has none. Add a layer that has some.")


def _waits_for_weights(layer: keras.layers.Layer) -> bool:
    # A model that only holds built models, as a GAN does, is never built itself and waits for nothing.
    makes_none = (keras.layers.Layer.build, keras.Model.build, keras.Sequential.build)
    return not layer.built and type(layer).build not in makes_none


def _walk_layer(
    layer: keras.layers.Layer,
    path: str,
    containers: set[str],
    seen: set[int],
    by_hand: bool = True,
    came_frozen: bool = False,
) -> Iterator[Leaf]:
    trainable, others = layer_variables(layer)
    variables = [*trainable, *others]
    for index, (variable, name) in enumerate(zip(variables, _variable_names(layer, variables), strict=True)):
        if _is_new(variable, seen):
            yield Leaf(_join(path, name), path, variable, index < len(trainable), layer, index, came_frozen=came_frozen)
    if _is_container(layer):
        containers.add(path)
    for child, name in _named_children(layer, by_hand):
        if _is_new(child, seen):
            containers.update(_join(path, holder) for holder in _ancestors(name))
            made_by_hand, is_frozen = by_hand or not _is_graph(child), came_frozen or is_freezing_forgotten(child)
            yield from _walk_layer(child, _join(path, name), containers, seen, made_by_hand, is_frozen)


def _is_container(layer: keras.layers.Layer) -> bool:
    inner = layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer
    return isinstance(inner, keras.Model) or getattr(inner, "holds_layers", False)


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    below = sublayers(layer, recursive=False)
    public = layer.layers if isinstance(layer, keras.Model) else []
    return list({id(child): child for child in [*public, *below]}.values())


def _is_graph(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.Function, keras.Sequential))  # a functional model is a keras.Function


def _named_children(layer: keras.layers.Layer, by_hand: bool) -> list[tuple[keras.layers.Layer, str]]:
    """Names the sublayers; `by_hand` says that a constructor makes them, so that automatic names change each time."""
    children = _children(layer)
    if not by_hand:
        return list(zip(children, _unique(child.name for child in children), strict=True))
    held = {} if _is_graph(layer) else attribute_paths(layer)
    met: Counter[str] = Counter()
    names = []
    for child in children:
        base = _automatic_name(child)
        names.append(held.get(id(child), _numbered(base, met[base])) if base else child.name)
        met[base] += 1
    return list(zip(children, _unique(names), strict=True))


def _automatic_name(layer: keras.layers.Layer) -> str:
    """Returns the name Keras chose for the layer without its number; empty when somebody chose the name."""
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)).lower()
    # Bidirectional derives the names of its halves from an automatic one.
    match = re.fullmatch(rf"((?:forward_|backward_)?{re.escape(snake)})(_\d+)?", layer.name)
    return match[1] if match else ""


def _numbered(base: str, n: int) -> str:
    return f"{base}_{n}" if n else base


def _variable_names(layer: keras.layers.Layer, variables: list[Any]) -> list[str]:
    is_auto = [_AUTOMATIC.fullmatch(variable.name) is not None for variable in variables]
    held = attribute_paths(layer) if any(is_auto) else {}
    return _unique(held.get(id(v), "variable") if auto else v.name for v, auto in zip(variables, is_auto, strict=True))


def attribute_paths(layer: keras.layers.Layer) -> dict[int, str]:
    """Returns the attribute that holds each variable and layer, by their ids: `kernel`, `blocks/0`, `_query_dense`."""
    paths: dict[int, str] = {}
    for name, value in sorted(vars(layer).items(), key=lambda item: item[0].startswith("_")):  # public ones first
        if not _KERAS_BOOKS.fullmatch(name):
            for path, part in _parts(name, value):
                paths.setdefault(id(part), path)
    return paths


# tf.Module and SavedModel


def _module_tree(root: Any) -> LayerTree:
    containers: set[str] = set()
    walked = {id(leaf.variable): leaf for leaf in _walk_module(root, "", containers, set())}
    listed = {id(variable): variable for variable in _public_list(root, "variables")}
    kept = {key: leaf for key, leaf in walked.items() if not listed or isinstance(leaf.variable, keras.Variable)}
    leaves = [walked.get(key) or _stray(root, variable, n) for n, (key, variable) in enumerate(listed.items())]
    leaves += [leaf for key, leaf in kept.items() if key not in listed]
    leaves = [leaf for leaf in leaves if not _is_seed(leaf)]
    if not leaves:
        raise GroupError(
            f"A layer tree needs variables, and the `{type(root).__name__}` has none. If it makes them at the first "
            "call, call it once; if it was saved without tracking them, save it again with them as attributes."
        )
    leaves = _uniquely_named(_in_public_order(_with_own_names(leaves), _public_list(root, "trainable_variables")))
    containers.update(holder for leaf in leaves for holder in _ancestors(leaf.layer))
    return LayerTree(leaves, _top_names(leaves), frozenset(containers))


def _top_names(leaves: tuple[Leaf, ...]) -> tuple[str, ...]:
    """Returns the first parts that differ: not `sequential` alone when every name starts with it."""
    decisive = [leaf for leaf in leaves if leaf.trainable] or leaves  # a global step may be outside of it
    shared = set.intersection(*(set(_ancestors(leaf.layer)) for leaf in decisive))
    return tuple(dict.fromkeys("/".join(leaf.name.split("/")[: len(shared) + 1]) for leaf in leaves))


def _walk_module(module: Any, path: str, containers: set[str], seen: set[int]) -> Iterator[Leaf]:
    for parts in _clear_and_opaque_parts(module):
        own = {id(part): part for _, part in parts if isinstance(part, tf.Variable)}
        saved = {key: n for n, key in enumerate(sorted(own, key=lambda key: not own[key].trainable))}
        for name, part in parts:
            if id(part) in own and _is_new(part, seen):
                yield Leaf(_join(path, name), path, part, part.trainable, module, saved[id(part)])
        for name, part in parts:
            if isinstance(part, keras.layers.Layer) and _is_new(part, seen):
                yield from _walk_layer(part, _join(path, name), containers, seen)
            elif is_trackable(part) and _is_new(part, seen):
                yield from _walk_module(part, _join(path, name), containers, seen)


def _clear_and_opaque_parts(module: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    attributes = sorted(vars(module).items(), key=lambda item: (item[0] != "variables", item[0]))
    clear: list[tuple[str, Any]] = []
    opaque: list[tuple[str, Any]] = []
    for name, value in attributes:
        if not _NOT_WEIGHTS.fullmatch(name):
            (opaque if _OPAQUE.fullmatch(name) else clear).extend(_parts(name, value))
    return clear, opaque


def _with_own_names(leaves: list[Leaf]) -> list[Leaf]:
    own = [leaf.variable.name.partition(":")[0] for leaf in leaves]
    all_speak = all("/" in name for name in own) and len(set(own)) == len(own)

    def named(leaf: Leaf, name: str) -> Leaf:
        is_opaque = _OPAQUE.fullmatch(leaf.name.partition("/")[0]) is not None
        speaks = all_speak or (is_opaque and not _AUTOMATIC.fullmatch(name))
        return replace(leaf, name=name, layer=name.rpartition("/")[0]) if speaks else leaf

    return [named(leaf, name) for leaf, name in zip(leaves, own, strict=True)]


def _in_public_order(leaves: list[Leaf], trainable_variables: list[Any]) -> list[Leaf]:
    rank = {id(variable): n for n, variable in enumerate(trainable_variables)}
    ranked = iter(sorted((lf for lf in leaves if id(lf.variable) in rank), key=lambda lf: rank[id(lf.variable)]))
    return [next(ranked) if id(leaf.variable) in rank else leaf for leaf in leaves]


def _public_list(root: Any, name: str) -> list[Any]:
    value = getattr(root, name, None)
    return list(value) if isinstance(value, (list, tuple)) else []


def _is_seed(leaf: Leaf) -> bool:
    return leaf.variable.name.partition(":")[0].endswith("seed_generator_state")


# Both


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what an attribute holds with its path: itself, or the elements of its lists and dicts."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _parts(_join(name, str(key).replace("/", "_")), value[key])
    elif isinstance(value, (list, tuple)):
        for n, element in enumerate(value):
            yield from _parts(f"{name}/{n}", element)
    else:
        yield name, value


def _stray(root: Any, weight: Any, index: int) -> Leaf:
    path = re.sub(r"[^\w./-]", "_", variable_path(weight).partition(":")[0]).strip("/")
    return Leaf(path, path.rpartition("/")[0], weight, weight.trainable, root, index)


def _uniquely_named(leaves: list[Leaf]) -> tuple[Leaf, ...]:
    names = _unique(leaf.name for leaf in leaves)
    return tuple(replace(leaf, name=name) for leaf, name in zip(leaves, names, strict=True))


def _unique(names: Iterable[str]) -> list[str]:
    used: dict[str, None] = {}
    for name in names:
        candidates = chain([name], (f"{name}~{n}" for n in count(1)))
        used[next(candidate for candidate in candidates if candidate not in used)] = None
    return list(used)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _ancestors(path: str) -> list[str]:
    return paths_down(path)[:-1]


def _is_new(thing: Any, seen: set[int]) -> bool:
    is_new = id(thing) not in seen
    seen.add(id(thing))
    return is_new
