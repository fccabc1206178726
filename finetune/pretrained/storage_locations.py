"""Finds where each file format of Keras and TensorFlow would store each weight of a model.

Names alone do not match every file: Keras files the parts of a subclassed model under attributes and classes, and
TensorFlow's object graphs know neither the names of nested models nor those of layers in lists. What a file and a model
of the same structure do share is the *location* of each weight. A location is a text with the layout before the colon:

- `keras:layers/dense_1#0/2`: Keras 3 files; weight 0 of the 2 of this object. `keras-path:` for files without names,
  `keras-again:` for the other attributes that lead to an object: Keras 2 saved as `_query_dense` what is `query_dense`.
- `legacy:dense:1/3:0/2|kernel`: legacy `.h5`; layer 1 of 3 with weights, weight 0 of 2, called `kernel`.
- `object:_operations/1/_kernel|dense/kernel`: object graphs; the path of attributes, then the variable's own name.
- `keras2:layer_with_weights-1/4/kernel|dense`: object graphs of Keras 2; the same path there, then the layer's name.
- `trainable:2/6|kernel`: the third of six trainable weights.

The readers in `finetune.pretrained.formats` give the weights of a file locations in the same words.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune.groups.layer_tree import LayerTree, attribute_paths, own_counts, paths_down
from finetune.keras_private import is_saveable, layer_variables, saved_children, sublayers
from finetune.pretrained.automatic_names import automatic_name, has_automatic_name, without_number
from finetune.pretrained.formats.checkpoints import (
    keras2_location,
    object_location,
    trainable_location,
    variable_paths,
)
from finetune.pretrained.formats.keras_files import LEGACY_ROOT, legacy_location, location_in_keras_file
from finetune.variables import tf_variable


def storage_locations(model: Any, tree: LayerTree) -> dict[str, tuple[str, ...]]:
    """Returns where files written from a model of the same structure store each weight.

    Args:
        model: The model that `tree` was made from.
        tree: Its weights.

    Returns:
        For each weight's name, its locations in all layouts, the surest first.
    """
    locations: dict[str, list[str]] = {leaf.name: [] for leaf in tree.leaves}
    for layout in (_keras3_locations, _legacy_locations, _object_locations, _keras2_locations):
        for name, location in layout(model, tree):
            locations[name].append(location)
    for index, leaf in enumerate(tree.trainable):
        locations[leaf.name].append(trainable_location(index, len(tree.trainable), full_name(leaf.variable)))
    return {name: tuple(of_weight) for name, of_weight in locations.items()}


# Keras 3


def _keras3_locations(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    if not isinstance(model, keras.layers.Layer):
        return
    objects, again = _saved_objects(model)
    names, paths = _names(objects), {id(item): path for path, item in objects.items()}
    counts = own_counts(tree.leaves)
    for leaf in tree.leaves:
        path = paths.get(id(leaf.owner))
        if path is not None:
            weight = f"#{leaf.index}/{counts[id(leaf.owner)]}"
            yield from ((leaf.name, place) for place in _places(path, weight, names))
            for other in _other_paths(path, again):
                yield leaf.name, f"keras-again:{other}{weight}"


def _names(objects: Mapping[str, Any]) -> dict[str, str]:
    return {path: item.name for path, item in objects.items() if isinstance(getattr(item, "name", None), str)}


def _places(path: str, weight: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Returns the location of a weight in files with names of layers and in those without."""
    return f"keras:{location_in_keras_file(path, names)}{weight}", f"keras-path:{path}{weight}"


def copy_locations(model: Any, tree: LayerTree) -> dict[str, str]:
    """Returns where Keras 3 files keep a weight once more: Keras saves it with every layer that has it as an attribute.

    `SpectralNormalization` has the kernel of the layer in it as its own, and so have layers with tied weights.

    Returns:
        The name of the weight by the location of each copy.
    """
    if not isinstance(model, keras.layers.Layer):
        return {}
    owned = {id(leaf.variable): leaf for leaf in tree.leaves}
    objects = saved_objects(model)
    names = _names(objects)
    copies: dict[str, str] = {}
    for path, item in objects.items():
        variables = list(itertools.chain(*layer_variables(item))) if isinstance(item, keras.layers.Layer) else []
        for index, variable in enumerate(variables):
            leaf = owned.get(id(variable))
            if leaf is not None and leaf.owner is not item:
                copies |= dict.fromkeys(_places(path, f"#{index}/{len(variables)}", names), leaf.name)
    return copies


def _other_paths(path: str, again: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yields the paths that lead to an object if it, or an object above it, is reached by another attribute."""
    for above in paths_down(path):
        yield from (
            other + path[len(above) :] for other in again.get(above, ()) if not f"{other}/".startswith(f"{above}/")
        )


def saved_objects(model: keras.layers.Layer) -> dict[str, Any]:
    """Returns the objects that `model.save_weights` visits, by their paths in the file: `layers/dense_1`.

    The order of the walk matters: an object that two attributes hold is saved under the first only.
    """
    return _saved_objects(model)[0]


def _saved_objects(model: keras.layers.Layer) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Returns `saved_objects`, and by the path of each object or container the other paths that lead to it."""
    objects: dict[str, Any] = {}
    again: dict[str, list[str]] = defaultdict(list)
    # Keeps a reference to each object: some attributes return a new list at each call, and the id of a list that was
    # collected may come back for another one.
    seen: dict[int, tuple[Any, str]] = {}

    def visit(item: Any, path: str) -> None:
        if id(item) in seen:
            again[seen[id(item)][1]].append(path)
            return
        seen[id(item)] = (item, path)
        if is_saveable(item):
            objects[path] = item
            children = saved_children(item)
        else:
            children = _members(item)
        for name, child in children:
            if is_saveable(child) or isinstance(child, list | dict | tuple):
                visit(child, f"{path}/{name}" if path else name)

    visit(model, "")
    return objects, again


def _members(container: Any) -> Iterator[tuple[str, Any]]:
    """Yields the members of a list or dict under the names that Keras gives them: `dense`, `dense_1`, `container`."""
    used: Counter[str] = Counter()
    for item in container.values() if isinstance(container, dict) else container:
        if is_saveable(item) or isinstance(item, list | dict | tuple):
            name = automatic_name(item) if is_saveable(item) else "container"
            yield (f"{name}_{used[name]}" if used[name] else name), item
            used[name] += 1


# Legacy HDF5


def _legacy_locations(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    if not isinstance(model, keras.Model):
        return
    below = [[leaf for leaf in tree.leaves if leaf.name.startswith(f"{name}/")] for name in tree.layers]
    with_weights = [(layer, leaves) for layer, leaves in zip(model.layers, below, strict=True) if leaves]
    groups = [
        (without_number(layer.name) if has_automatic_name(layer) else layer.name, f"{i}/{len(with_weights)}", leaves)
        for i, (layer, leaves) in enumerate(with_weights)
    ]
    groups.append((LEGACY_ROOT, "", [leaf for leaf in tree.leaves if not leaf.layer]))
    for group, order, leaves in groups:
        # The legacy format lists all trainable weights of a layer (which may be a whole model) before the others.
        for i, leaf in enumerate(sorted(leaves, key=lambda leaf: not leaf.trainable)):
            yield leaf.name, legacy_location(group, order, f"{i}/{len(leaves)}", leaf.variable.path)


# TensorFlow's object graphs


def _object_locations(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    objects: dict[int, Any] = {}  # keeps a reference to each object, so that no id is used twice

    def children(number: int) -> dict[str, int]:
        below = tf.train.TrackableView.children(objects[number])
        objects.update((id(child), child) for child in below.values())
        return {name: id(child) for name, child in below.items()}

    objects[id(model)] = model
    paths = variable_paths(id(model), children)
    layers = (item for item in objects.values() if isinstance(item, keras.layers.Layer))
    automatic = {layer.name for layer in layers if has_automatic_name(layer)}
    for leaf in tree.leaves:
        if path := paths.get(id(leaf.variable)):
            parts = full_name(leaf.variable).split("/")
            without_numbers = (without_number(part) if part in automatic else part for part in parts)
            yield leaf.name, object_location(path, "/".join(without_numbers))


def _keras2_locations(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    if isinstance(model, keras.Model):
        names = {id(leaf.variable): leaf.name for leaf in tree.leaves}
        for variable, path, layer in _keras2_paths(model, (), ""):
            if id(variable) in names:
                yield names[id(variable)], keras2_location(path, layer)


def _keras2_paths(
    layer: keras.layers.Layer, path: tuple[str, ...], name: str
) -> Iterator[tuple[Any, tuple[str, ...], str]]:
    """Yields each variable below a layer with the path to it in Keras 2, and the name of the layer in its model.

    Keras 2 numbered the layers of a functional or Sequential model, those with weights by themselves; everything else
    it reached by attributes.
    """
    if isinstance(layer, keras.Sequential | keras.Function):
        with_weights = [child for child in layer.layers if child.weights]
        for i, child in enumerate(with_weights):
            child_name = without_number(child.name) if has_automatic_name(child) else child.name
            yield from _keras2_paths(child, (*path, f"layer_with_weights-{i}/{len(with_weights)}"), child_name)
        return
    held = attribute_paths(layer)
    for variable in itertools.chain(*layer_variables(layer)):
        if id(variable) in held:
            yield variable, (*path, held[id(variable)]), name
    for child in sublayers(layer, recursive=False):
        if id(child) in held:
            yield from _keras2_paths(child, (*path, held[id(child)]), name)


def full_name(variable: Any) -> str:
    """Returns the name that TensorFlow has for a variable, without `:0`: `dense/kernel`."""
    return tf_variable(variable).name.removesuffix(":0")
