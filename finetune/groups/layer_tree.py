"""Stable, unique names for every weight of a model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Leaf:
    """One weight of a model and its place in the layer tree.

    Attributes:
        name: Unique name, e.g. `backbone/conv1/kernel`: layer names below the root, then the variable's own.
        layer: Name of the layer that owns it, `backbone/conv1`; empty for a weight of the root itself.
        variable: The `keras.Variable` or `tf.Variable`.
        trainable: Whether it was created trainable, whatever is frozen now.
        owner: The layer or module object that owns it.
        index: Its position among the owner's own weights, as Keras saves them (trainable ones first).
    """

    name: str
    layer: str
    variable: Any
    trainable: bool
    owner: Any
    index: int


@dataclass(frozen=True)
class LayerTree:
    """All weights of a model, in the model's order.

    Attributes:
        leaves: Every weight once; trainable ones among them in the order of `model.trainable_variables` when
            nothing is frozen.
        layers: Names of the model's own layers, exactly as `model.layers` counts them (input layers included).
    """

    leaves: tuple[Leaf, ...]
    layers: tuple[str, ...]

    @cached_property
    def trainable(self) -> tuple[Leaf, ...]:
        """The leaves that were created trainable, in the order of `model.trainable_variables`."""
        return tuple(leaf for leaf in self.leaves if leaf.trainable)

    @cached_property
    def by_name(self) -> dict[str, Leaf]:
        return {leaf.name: leaf for leaf in self.leaves}


def layer_tree(model: Any) -> LayerTree:
    raise NotImplementedError
