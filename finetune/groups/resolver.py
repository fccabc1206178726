"""Selectors to layer groups: every trainable variable in exactly one group."""

from dataclasses import dataclass
from typing import Any

from finetune.groups.layer_tree import Leaf


@dataclass(frozen=True)
class Selector:
    """What a layer group asks for. A weight matches when any of the conditions does.

    Attributes:
        name: The group's name.
        prefixes: Names of layers or weights, matched at `/` boundaries: `a` takes `a/kernel`, not `ab/kernel`.
        regex: Regular expressions that must match a weight's whole name.
        layers: Slices or indices of `model.layers`: `"0:3"`, `"-1"`, `5`.
        variables: Slices or indices of the trainable variables: `"0:40"`, `"40:"`, `-1`.
        rest: Takes every weight that no other group takes, wherever it stands in the list.
        frozen: The group is not trained.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    layers: tuple[str | int, ...] = ()
    variables: tuple[str | int, ...] = ()
    rest: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class LayerGroup:
    """A named part of a model's weights.

    Attributes:
        name: Unique among the groups.
        leaves: Its weights in model order: trainable ones, and the non-trainable ones of the same layers
            (moving statistics), which follow them.
        frozen: Whether the group is left alone by training.
    """

    name: str
    leaves: tuple[Leaf, ...]
    frozen: bool = False

    @property
    def trainable(self) -> tuple[Leaf, ...]:
        """The leaves an optimizer updates when the group is not frozen."""
        return tuple(leaf for leaf in self.leaves if leaf.trainable)

    @property
    def variables(self) -> list[Any]:
        """The variables of `trainable`, in model order."""
        return [leaf.variable for leaf in self.trainable]
