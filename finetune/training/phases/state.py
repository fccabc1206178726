"""What is trained in a phase and what stands: worked out from the groups, put into effect, held against the model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import keras

from finetune.checksum import checksum
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import Leaf, is_normalization, layer_tree, layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import freeze
from finetune.training.inference import frozen_parts, release, rest

BATCH_NORM_MODES = {
    "train": "training, statistics move",
    "freeze": "inference, statistics stand",
    "affine": "inference, statistics stand, gamma and beta train",
    "statistics": "training, statistics move, gamma and beta stand",
}


@dataclass(frozen=True)
class PhaseState:
    """What becomes of every weight in a phase.

    Attributes:
        trained: What the optimizer updates.
        standing: What is bit-identical afterwards, moving statistics included.
        moving: BatchNormalization layers whose statistics move while gamma and beta stand.
        resting: Layers that are called in inference mode though `trainable` does not make them so.
        modes: The mode of BatchNormalization in every group that has some.
    """

    trained: tuple[Leaf, ...]
    standing: tuple[Leaf, ...]
    moving: tuple[keras.layers.Layer, ...]
    resting: tuple[keras.layers.Layer, ...]
    modes: Mapping[str, str]

    @property
    def key(self) -> tuple[frozenset[int], ...]:
        """Equal for phases in which one compiled function can serve."""
        of_leaves = [frozenset(id(leaf.variable) for leaf in leaves) for leaves in (self.trained, self.standing)]
        return (*of_leaves, *(frozenset(map(id, layers)) for layers in (self.moving, self.resting)))

    def checksums(self) -> dict[str, str]:
        """The checksum of every tensor that stands, by name."""
        return {leaf.name: checksum(leaf.variable) for leaf in self.standing}


def is_batch_norm(leaf: Leaf) -> bool:
    return isinstance(leaf.owner, keras.layers.BatchNormalization)


def phase_state(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    train: Collection[str],
    *,
    batch_norm: Mapping[str, str] | None = None,
    always_train_normalization: bool = False,
    dropping: Collection[str] = (),
) -> PhaseState:
    """Works out what becomes of every weight of a model.

    Args:
        model: A built Keras model.
        groups: All of its layer groups.
        train: Names of the groups that are trained.
        batch_norm: One of `BATCH_NORM_MODES` for some groups; default `train` in a trained group, `freeze` in another.
        always_train_normalization: Whether gamma and beta of normalization layers train in frozen groups, too.
        dropping: Names of groups that keep their dropout when they are frozen.
    """
    tree = layer_tree(model)
    group_of = {leaf.name: group.name for group in groups for leaf in group.leaves}
    default = {
        group.name: "train" if group.name in train or (always_train_normalization and not group.frozen) else "freeze"
        for group in groups
    }
    modes = {**default, **(batch_norm or {})}

    def trains(leaf: Leaf) -> bool:
        name = group_of[leaf.name]
        if is_batch_norm(leaf):
            return modes[name] in (("train", "affine") if leaf.trainable else ("train", "statistics"))
        always = always_train_normalization and default[name] == "train" and leaf.trainable and is_normalization(leaf)
        return name in train or always

    changing = [leaf for leaf in tree.leaves if trains(leaf)]
    changes = {id(leaf.variable) for leaf in changing}
    norms = {id(leaf.owner): leaf.owner for leaf in tree.leaves if is_batch_norm(leaf)}
    learns = {id(leaf.owner) for leaf in changing if is_batch_norm(leaf) and leaf.trainable}
    moves = {id(leaf.owner) for leaf in changing if is_batch_norm(leaf) and not leaf.trainable}
    held = {id(leaf.variable) for leaf in tree.leaves if group_of[leaf.name] not in {*train, *dropping}}
    resting = [layer for key, layer in norms.items() if key in learns and key not in moves]
    resting += [one for one in frozen_parts(model, tree, held) if id(one) not in norms and not _holds(one, moves)]
    return PhaseState(
        trained=tuple(leaf for leaf in changing if leaf.trainable),
        standing=tuple(leaf for leaf in tree.leaves if id(leaf.variable) not in changes),
        moving=tuple(layer for key, layer in norms.items() if key in moves and key not in learns),
        resting=tuple(resting),
        modes={group.name: modes[group.name] for group in groups if any(map(is_batch_norm, group.leaves))},
    )


def _holds(layer: keras.layers.Layer, keys: Collection[int]) -> bool:
    return any(id(one) in keys for one in layers_in_order(layer))


def enter(model: keras.Model, state: PhaseState) -> None:
    """Puts a state into effect, whatever was before, for what is traced from now on."""
    release(layers_in_order(model))
    freeze(model, [LayerGroup("trained", state.trained), LayerGroup("standing", state.standing, frozen=True)])
    for layer in state.moving:
        layer.trainable = True
    for leaf in state.standing:
        if leaf.trainable and any(leaf.owner is layer for layer in state.moving):
            leaf.variable.trainable = False
    rest(state.resting)


def check(model: keras.Model, state: PhaseState, phase: str) -> None:
    """Raises a TrainingError that names the layers, if somebody else has changed what is trainable.

    Args:
        model: The model.
        state: What was put into effect.
        phase: Which phase it is, for the message.
    """
    planned = {id(leaf.variable) for leaf in state.trained}
    actual = {id(variable) for variable in model.trainable_variables}
    leaves = layer_tree(model).leaves
    alive = {id(leaf.owner) for leaf in state.trained} | set(map(id, state.moving))
    wrong = [leaf for leaf in leaves if (id(leaf.variable) in planned) != (id(leaf.variable) in actual)]
    wrong += [leaf for leaf in leaves if is_batch_norm(leaf) and leaf.owner.trainable != (id(leaf.owner) in alive)]
    if wrong:
        told = {leaf.layer or leaf.name: "frozen" if leaf.owner.trainable else "trained" for leaf in wrong}
        planned_as = " and ".join(sorted({*told.values()}))
        raise TrainingError(
            f"The phases alone decide what is trained. During {phase} somebody has changed `trainable` of "
            f"{quote(told)}, which the plan has {planned_as}: what was compiled before does not heed it. Do not set "
            "`layer.trainable` while phases run: put the layers into a group of their own, and name it in `train` of a "
            "phase."
        )
