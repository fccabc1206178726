"""Frozen layer groups: made so, and proven so."""

from collections.abc import Sequence
from typing import Any

import keras

from finetune.checksum import checksum
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.groups.selectors import LayerGroup


def freeze(model: keras.Model, groups: Sequence[LayerGroup]) -> None:
    """Makes exactly the variables of the groups that are not frozen trainable. Call before `model.compile`.

    A layer whose weights are all frozen is set to `trainable=False`, which also puts BatchNormalization into inference
    mode, so that its moving statistics stand still. In a layer that is frozen in part, only the variables are.

    Args:
        model: A built Keras model.
        groups: All of its layer groups.
    """
    frozen = {id(leaf.variable) for group in groups if group.frozen for leaf in group.leaves}
    owners = _owners(layer_tree(model))
    for layer in (model, *owners):  # Keras ignores `True` where it already stands, and so all that is below it
        layer.trainable = False
        layer.trainable = True
    for owner in owners:
        weights = [weight for weight in owner.weights if weight.trainable] or owner.weights
        if all(id(weight) in frozen for weight in weights):
            owner.trainable = False
    for group in groups:
        for leaf in group.trainable if group.frozen else ():
            leaf.variable.trainable = False


def _owners(tree: LayerTree) -> list[Any]:
    owners = {id(leaf.owner): leaf.owner for leaf in tree.leaves}
    return [owner for owner in owners.values() if isinstance(owner, keras.Layer) and owner.weights]


def check_trainable(model: keras.Model, groups: Sequence[LayerGroup]) -> None:
    """Raises a TrainingError unless the model trains exactly the variables of the groups that are not frozen."""
    planned = {id(leaf.variable): leaf.name for group in groups if not group.frozen for leaf in group.trainable}
    actual = {id(variable): variable.path for variable in model.trainable_variables}
    surprising = [name for key, name in (actual | planned).items() if (key in planned) != (key in actual)]
    if surprising:
        raise TrainingError(
            "Only the groups that are not frozen are trained. The model disagrees with the plan about "
            f"{quote(surprising)}. Do not change `trainable` after `freeze`; change the groups."
        )


def checksums(groups: Sequence[LayerGroup], *, frozen: bool) -> dict[str, str]:
    """Returns the checksum of every weight, moving statistics included, of the (un)frozen groups, by name."""
    return {leaf.name: checksum(leaf.variable) for group in groups if group.frozen is frozen for leaf in group.leaves}


def changed_since(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns the names of the tensors whose checksum changed."""
    return [name for name, value in before.items() if after[name] != value]


def prove_unchanged(before: dict[str, str], after: dict[str, str]) -> None:
    """Raises a TrainingError that names the frozen tensors whose checksum changed."""
    changed = changed_since(before, after)
    if changed:
        raise TrainingError(
            f"Frozen tensors stay bit-identical. {len(changed)} of {len(before)} changed: {quote(changed)}. "
            "The trained model was saved, but do not trust it; please report this as a bug."
        )
