"""Where Keras and TensorFlow themselves would keep each weight of a model."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.saving_lib import _walk_saveable

from finetune.groups.layer_tree import LayerTree
from finetune.pretrained.formats.checkpoints import object_place, trainable_place, variable_paths
from finetune.pretrained.formats.keras_files import LEGACY_ROOT, address, legacy_place
from finetune.pretrained.numbering import class_name, is_counted, stem
from finetune.variables import tf_variable


def places(model: Any, tree: LayerTree) -> dict[str, tuple[str, ...]]:
    """Tells where a file written from a model of the same structure keeps each weight.

    Names alone do not find everything: Keras files the parts of a subclassed model under attributes or classes, and
    TensorFlow's object graphs know neither the names of nested models nor those of layers in lists.

    Args:
        model: What `tree` was made of.
        tree: The names of its weights.

    Returns:
        For each weight's name, the `places` and the aliases that a `Tensor` of such a file has, surest first.
    """
    found: dict[str, list[str]] = {leaf.name: [] for leaf in tree.leaves}
    for finder in (_keras_places, _legacy_places, _object_places, _trainable_places):
        for name, place in finder(model, tree):
            found[name].append(place)
    return {name: tuple(every) for name, every in found.items()}


def _keras_places(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    if not isinstance(model, keras.layers.Layer):
        return
    objects = keras_objects(model)
    names = {path: item.name for path, item in objects.items() if isinstance(getattr(item, "name", None), str)}
    paths = {id(item): path for path, item in objects.items()}
    counts = Counter(id(leaf.owner) for leaf in tree.leaves)
    for leaf in tree.leaves:
        path = paths.get(id(leaf.owner))
        if path is not None:
            weight = f"#{leaf.index}/{counts[id(leaf.owner)]}"
            yield leaf.name, f"keras:{address(path, names)}{weight}"
            yield leaf.name, f"keras-path:{path}{weight}"


def keras_objects(model: keras.layers.Layer) -> dict[str, Any]:
    """Returns the objects that `model.save_weights` visits, by their paths in the file."""
    objects: dict[str, Any] = {}
    seen: dict[int, Any] = {}  # holds on to lists made for the occasion, so that no id comes twice

    def visit(item: Any, path: str) -> None:
        if id(item) in seen:
            return
        seen[id(item)] = item
        if isinstance(item, KerasSaveable):
            objects[path] = item
            # Keras has no public way to ask for the paths it saves under; test_places.py holds them to real files.
            held = _walk_saveable(item)
        else:
            held = _members(item)
        for name, child in held:
            if isinstance(child, KerasSaveable | list | dict | tuple):
                visit(child, f"{path}/{name}" if path else name)

    visit(model, "")
    return objects


def _members(container: Any) -> Iterator[tuple[str, Any]]:
    """The members of a list under the names that Keras gives them: `dense`, `dense_1`."""
    used: Counter[str] = Counter()
    for item in container.values() if isinstance(container, dict) else container:
        if isinstance(item, KerasSaveable | list | dict | tuple):
            name = class_name(item) if isinstance(item, KerasSaveable) else "container"
            yield (f"{name}_{used[name]}" if used[name] else name), item
            used[name] += 1


def _legacy_places(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    if not isinstance(model, keras.Model):
        return
    below = [[leaf for leaf in tree.leaves if leaf.name.startswith(f"{name}/")] for name in tree.layers]
    filled = [(_legacy_name(layer), leaves) for layer, leaves in zip(model.layers, below, strict=True) if leaves]
    parts = [(name, f"{i}/{len(filled)}", leaves) for i, (name, leaves) in enumerate(filled)]
    for name, order, leaves in [*parts, (LEGACY_ROOT, "", [leaf for leaf in tree.leaves if not leaf.layer])]:
        for i, leaf in enumerate(sorted(leaves, key=lambda leaf: not leaf.trainable)):
            yield leaf.name, legacy_place(name, order, f"{i}/{len(leaves)}", leaf.variable.path)


def _legacy_name(layer: keras.layers.Layer) -> str:
    return stem(layer.name) if is_counted(layer) else layer.name


def _object_places(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    held: dict[int, Any] = {}  # keeps the objects alive, and so their ids their own

    def children(number: int) -> dict[str, int]:
        below = tf.train.TrackableView.children(held[number])
        held.update((id(child), child) for child in below.values())
        return {name: id(child) for name, child in below.items()}

    held[id(model)] = model
    paths = variable_paths(id(model), children)
    counted = {item.name for item in held.values() if isinstance(item, keras.layers.Layer) and is_counted(item)}
    for leaf in tree.leaves:
        if path := paths.get(id(leaf.variable)):
            parts = full_name(leaf.variable).split("/")
            yield leaf.name, object_place(path, "/".join(stem(part) if part in counted else part for part in parts))


def _trainable_places(model: Any, tree: LayerTree) -> Iterator[tuple[str, str]]:
    for index, leaf in enumerate(tree.trainable):
        yield leaf.name, trainable_place(index, len(tree.trainable), full_name(leaf.variable))


def full_name(variable: Any) -> str:
    """Returns the name that TensorFlow itself has for the variable, without `:0`."""
    return tf_variable(variable).name.removesuffix(":0")
