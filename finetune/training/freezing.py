"""What is trained and what is frozen: one definition, put into effect on a model and checked against it.

A `PhaseState` says of every weight whether the optimizer updates it, the forward pass updates it (moving statistics),
or nothing does, and in which mode every layer runs. `phase_state` works it out from the layer groups alone; the plan,
the proof, the cache of features and the training loop all read it from there.

Keras decides three things by `layer.trainable`: which weights are trained, whether BatchNormalization normalizes with
the statistics of the batch or with its moving ones, and whether it updates the latter. `apply_state` separates the
three by flags of layers, flags of variables, and layers that are called in inference mode.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from finetune.errors import GroupError, TrainingError, quote
from finetune.groups.batch_norm import TRAINS_GAMMA_AND_BETA, UPDATES_STATISTICS, is_batch_norm
from finetune.groups.frozen_by import mark_frozen
from finetune.groups.layer_tree import Leaf, layer_tree, layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.groups.weight_kinds import is_normalization
from finetune.training.inference import layers_in_frozen_part, run_in_inference_mode, undo_inference_mode


@dataclass(frozen=True)
class PhaseState:
    """What happens to every weight of a model while it trains with one set of trained groups.

    Every leaf of the model is in exactly one of `trained`, `frozen` and `updated_statistics`.

    Attributes:
        trained: Weights that the optimizer updates.
        frozen: Weights that are bit-identical afterwards, fixed moving statistics included.
        updated_statistics: Weights that the forward pass updates: moving statistics.
        statistics_only: BatchNormalization layers that update their statistics while gamma and beta are frozen.
        inference_layers: Layers that are called with `training=False` though `layer.trainable` does not make Keras do
            so: frozen dropout, and BatchNormalization that trains gamma and beta on fixed statistics.
        batch_norm_modes: The mode of BatchNormalization, a key of `BATCH_NORM_MODES`, in every group that has some.
    """

    trained: tuple[Leaf, ...]
    frozen: tuple[Leaf, ...]
    updated_statistics: tuple[Leaf, ...]
    statistics_only: tuple[keras.layers.Layer, ...]
    inference_layers: tuple[keras.layers.Layer, ...]
    batch_norm_modes: Mapping[str, str]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every weight of the model."""
        return (*self.trained, *self.frozen, *self.updated_statistics)

    @property
    def key(self) -> tuple[frozenset[int], ...]:
        """Equal for two states in which one compiled training function can serve."""
        weights = [frozenset(id(leaf.variable) for leaf in leaves) for leaves in (self.trained, self.frozen)]
        layers = [frozenset(map(id, layers)) for layers in (self.statistics_only, self.inference_layers)]
        return (*weights, *layers)


def phase_state(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    train: Collection[str] | None = None,
    *,
    batch_norm: Mapping[str, str] | None = None,
    always_train_normalization: bool = False,
    dropout_groups: Collection[str] | None = None,
) -> PhaseState:
    """Works out what happens to every weight of a model.

    Args:
        model: A built Keras model.
        groups: All of its layer groups: together they hold every weight.
        train: Names of the groups that are trained; by default all that are not frozen.
        batch_norm: A key of `BATCH_NORM_MODES` for some groups; by default `train` in a trained group, `freeze` in
            another.
        always_train_normalization: Whether gamma and beta of normalization layers train in the other groups, too,
            except in those that are frozen for good.
        dropout_groups: Names of the groups that keep their dropout while they are frozen; by default all.

    Raises:
        GroupError: The model has got or lost weights since the groups were resolved.
    """
    _check_every_weight(model, groups)
    train = {group.name for group in groups if not group.frozen} if train is None else train
    dropout_groups = {group.name for group in groups} if dropout_groups is None else dropout_groups
    leaves = [leaf for group in groups for leaf in group.leaves]
    group_of = {id(leaf.variable): group.name for group in groups for leaf in group.leaves}
    normalizing = {g.name for g in groups if g.name in train or (always_train_normalization and not g.frozen)}
    modes = {group.name: "train" if group.name in normalizing else "freeze" for group in groups} | dict(
        batch_norm or {}
    )

    def changes(leaf: Leaf) -> bool:
        if leaf.frozen_by:
            return False
        name = group_of[id(leaf.variable)]
        if is_batch_norm(leaf):
            return modes[name] in (TRAINS_GAMMA_AND_BETA if leaf.trainable else UPDATES_STATISTICS)
        return name in train or (name in normalizing and leaf.trainable and is_normalization(leaf))

    changing = [leaf for leaf in leaves if changes(leaf)]
    trained = tuple(leaf for leaf in changing if leaf.trainable)
    updated = tuple(leaf for leaf in changing if not leaf.trainable)
    changing_ids = {id(leaf.variable) for leaf in changing}

    # A layer may be split between two groups, so its own mode follows from what happens to its weights.
    batch_norms = {id(leaf.owner): leaf.owner for leaf in leaves if is_batch_norm(leaf)}
    learning = {id(leaf.owner) for leaf in trained if is_batch_norm(leaf)}
    updating = {id(leaf.owner) for leaf in updated if is_batch_norm(leaf)}
    inference = [layer for key, layer in batch_norms.items() if key in learning and key not in updating]
    silenced = {id(leaf.variable) for leaf in leaves if group_of[id(leaf.variable)] not in {*train, *dropout_groups}}
    for layer in layers_in_frozen_part(model, leaves, silenced) if silenced else ():
        # `training=False` would reach the parts of a layer, and so keep a BatchNormalization below from updating.
        has_updating_part = any(id(part) in updating for part in layers_in_order(layer))
        if id(layer) not in batch_norms and not has_updating_part:
            inference.append(layer)
    return PhaseState(
        trained=trained,
        frozen=tuple(leaf for leaf in leaves if id(leaf.variable) not in changing_ids),
        updated_statistics=updated,
        statistics_only=tuple(layer for key, layer in batch_norms.items() if key in updating and key not in learning),
        inference_layers=tuple(inference),
        batch_norm_modes={group.name: modes[group.name] for group in groups if any(map(is_batch_norm, group.leaves))},
    )


def _check_every_weight(model: keras.Model, groups: Sequence[LayerGroup]) -> None:
    """Checks that the groups hold every weight of the model, and nothing else."""
    known = {id(leaf.variable): leaf.name for group in groups for leaf in group.leaves}
    weights = {*map(id, model.weights)}
    if weights != known.keys():
        new = [leaf.name for leaf in layer_tree(model).leaves if id(leaf.variable) not in known]
        gone = [name for key, name in known.items() if key not in weights]
        received = [f"{quote(new)} in no group"] if new else []
        received += [f"{quote(gone)} in a group, but no longer in the model"] if gone else []
        raise GroupError(
            f"The layer groups must hold every weight of the model. Received {', and '.join(received)}. Pass all "
            "groups of this model, and resolve them after the last change to it, such as a new layer, `enable_lora` or "
            "`quantize`."
        )


def freeze(model: keras.Model, groups: Sequence[LayerGroup]) -> None:
    """Makes exactly the variables of the groups that are not frozen trainable. Call it before `model.compile`.

    A layer whose weights are all frozen gets `trainable=False`, which also puts BatchNormalization into inference mode,
    so that its moving statistics are not updated. In a layer that is frozen in part, only the variables are frozen.
    What other code had frozen when the groups were resolved stays frozen; see `Selector.frozen`.

    Args:
        model: A built Keras model.
        groups: All of its layer groups.

    Raises:
        GroupError: The model has got or lost weights since the groups were resolved.
    """
    apply_state(model, phase_state(model, groups))


def apply_state(model: keras.Model, state: PhaseState) -> None:
    """Puts a state into effect, whatever was in effect before, for what is traced from now on."""
    undo_inference_mode(layers_in_order(model))
    # Not only those that have weights themselves: of the layers that a `MultiHeadAttention` holds a file says nothing.
    with_weights = [layer for layer in layers_in_order(model) if layer.weights]
    for layer in (model, *with_weights):
        # First `False`: TensorFlow's `AutoTrackable` skips an attribute that already has the value, and then nothing
        # below the layer would be reached.
        layer.trainable = False
        layer.trainable = True
    frozen = {id(leaf.variable) for leaf in state.frozen}
    for layer in with_weights:
        weights = [weight for weight in layer.weights if weight.trainable] or layer.weights
        if all(id(weight) in frozen for weight in weights):
            layer.trainable = False
    for layer in state.statistics_only:  # after the loop above, which also sets what is below a frozen layer
        layer.trainable = True
    for leaf in state.frozen:  # after all layers: setting `layer.trainable` sets its variables
        if leaf.trainable:
            leaf.variable.trainable = False
    mark_frozen(state.leaves, [leaf for leaf in state.frozen if not leaf.frozen_by])
    run_in_inference_mode(state.inference_layers)


def check_state(model: keras.Model, state: PhaseState, moment: str) -> None:
    """Checks that the model still trains what a state says.

    Args:
        model: The model.
        state: What was put into effect.
        moment: When this is, for the message, such as `phase 1/2`.

    Raises:
        TrainingError: Somebody else has changed what is trainable; the message names the layers.
    """
    planned = {id(leaf.variable) for leaf in state.trained}
    actual = {id(variable) for variable in model.trainable_variables}
    active = {id(leaf.owner) for leaf in state.trained} | set(map(id, state.statistics_only))
    wrong = [leaf for leaf in state.leaves if (id(leaf.variable) in planned) != (id(leaf.variable) in actual)]
    wrong += [
        leaf for leaf in state.leaves if is_batch_norm(leaf) and leaf.owner.trainable != (id(leaf.owner) in active)
    ]
    if wrong:
        planned_as = {leaf.layer or leaf.name: "frozen" if leaf.owner.trainable else "trained" for leaf in wrong}
        raise TrainingError(
            f"Only the phases decide what is trained. During {moment} other code changed `trainable` of "
            f"{quote(planned_as)}, which must be {' and '.join(sorted({*planned_as.values()}))}; functions that are "
            "already compiled ignore the change. Do not set `layer.trainable` while phases run: put the layers into a "
            "group of their own and name it in `train` of a phase."
        )


def check_trainable(model: keras.Model, groups: Sequence[LayerGroup]) -> None:
    """Checks that the model trains exactly the variables of the groups that are not frozen.

    Raises:
        TrainingError: It does not; the message names the variables.
    """
    planned: dict[int, Any] = {id(leaf.variable): leaf.name for leaf in phase_state(model, groups).trained}
    actual = {id(variable): variable.path for variable in model.trainable_variables}
    differing = [name for key, name in (actual | planned).items() if (key in planned) != (key in actual)]
    if differing:
        raise TrainingError(
            "Exactly the groups that are not frozen are trained. The model and the groups disagree about "
            f"{quote(differing)}. Do not change `trainable` after `freeze`; change the groups."
        )
