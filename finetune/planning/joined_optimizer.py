"""The optimizers of layer groups, as a plan holds them, joined into one."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.groups.selectors import LayerGroup
from finetune.groups.weight_kinds import takes_weight_decay
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.planning.plan import GroupSettings


def join_optimizers(
    groups: Sequence[LayerGroup], settings: Mapping[str, GroupSettings], **arguments: Any
) -> GroupedOptimizer:
    """Joins the optimizers of the groups that are not frozen into one, without weight decay of biases and norms.

    Args:
        groups: All layer groups of the model, input to output.
        settings: How each group that is not frozen is trained. The optimizers in it must be new: a `GroupedOptimizer`
            keeps them.
        arguments: Of `GroupedOptimizer`, for all groups together.
    """
    children: dict[str, Any] = {}
    for group in groups:
        if group.frozen:
            continue
        child = settings[group.name].optimizer
        # Weight decay regularizes products of weights and inputs; biases and gammas are not among these.
        undecayed = [leaf.variable for leaf in group.trainable if not takes_weight_decay(leaf)]
        if undecayed and not settings[group.name].decay_bias_and_norm:
            child.exclude_from_weight_decay(var_list=undecayed)
        children[group.name] = (child, group)
    return GroupedOptimizer(children, **arguments)
