"""The statistics of BatchNormalization estimated anew from the training examples, after training."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import freeze
from finetune.training.inference import release, rest, takes_training


def recalibrate(model: keras.Model, groups: Sequence[LayerGroup], batches: tf.data.Dataset) -> int:
    """Replaces moving statistics by the mean of those of all batches, for the weights as they are now.

    Moving statistics lag behind weights that still changed, and begin at those of other data. Here every batch counts
    the same. Statistics in frozen groups stand; nothing is dropped meanwhile.

    Args:
        model: A built model.
        groups: All of its layer groups.
        batches: Batches of inputs and targets, at least one.

    Returns:
        How many layers were estimated anew.

    Raises:
        TrainingError: There is no batch.

    References:
        Wu & Johnson (2021), Rethinking "Batch" in BatchNorm, section 3, https://arxiv.org/abs/2105.07576
    """
    freeze(model, groups)
    norms = _moving(groups)
    if not norms:
        return 0
    held = [layer for layer in layers_in_order(model) if takes_training(layer) and not _has_any(layer, norms)]
    momenta = [norm.momentum for norm in norms]
    measured = []
    try:
        rest(held)
        for norm in norms:
            norm.momentum = 0.0  # then a moving statistic is that of the last batch
        forward = tf.function(lambda x: model(x, training=True), reduce_retracing=True)
        for x, _ in batches:
            forward(x)
            measured.append([value.numpy() for value in _statistics(norms)])
    finally:
        release(held)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not measured:
        raise TrainingError("Statistics are estimated from examples. Received no batch. Give one at least.")
    for variable, values in zip(_statistics(norms), zip(*measured, strict=True), strict=True):
        variable.assign(np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype))
    return len(norms)


def _moving(groups: Sequence[LayerGroup]) -> list[Any]:
    owners = {
        id(leaf.owner): leaf.owner
        for group in groups
        if not group.frozen
        for leaf in group.leaves
        if isinstance(leaf.owner, keras.layers.BatchNormalization) and leaf.owner.trainable
    }
    return list(owners.values())


def _statistics(norms: Sequence[Any]) -> list[keras.Variable]:
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def _has_any(layer: keras.layers.Layer, norms: Sequence[Any]) -> bool:
    return any(one is norm for one in (layer, *layers_in_order(layer)) for norm in norms)
