"""Moving statistics of BatchNormalization, estimated again from the training examples after training."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.groups.batch_norm import is_batch_norm
from finetune.groups.layer_tree import layers_in_order
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import apply_state, phase_state
from finetune.training.inference import differs_in_training, run_in_inference_mode, undo_inference_mode


def recalibrate(model: keras.Model, groups: Sequence[LayerGroup], batches: tf.data.Dataset) -> int:
    """Replaces moving statistics by their mean over all batches, for the weights as they are now.

    Moving statistics lag behind weights that still changed, and begin at those of other data. Here every batch counts
    the same. Statistics of frozen groups are not changed, and no dropout is active during the estimate.

    Args:
        model: A built model.
        groups: All of its layer groups.
        batches: Batches of inputs and targets, at least one.

    Returns:
        How many BatchNormalization layers got new statistics.

    Raises:
        TrainingError: There is no batch.

    References:
        Wu & Johnson (2021), Rethinking "Batch" in BatchNorm, section 3, https://arxiv.org/abs/2105.07576
    """
    state = phase_state(model, groups)
    apply_state(model, state)
    owners = {id(leaf.owner): leaf.owner for leaf in state.updated_statistics if is_batch_norm(leaf)}
    norms = list(owners.values())
    if not norms:
        return 0
    in_inference = [
        layer
        for layer in layers_in_order(model)
        if differs_in_training(layer) and owners.keys().isdisjoint(map(id, (layer, *layers_in_order(layer))))
    ]
    momenta = [norm.momentum for norm in norms]
    statistics = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    measured = []  # for each batch, the values of `statistics`
    try:
        run_in_inference_mode(in_inference)
        for norm in norms:
            # moving = momentum * moving + (1 - momentum) * of the batch: with 0 it is that of the last batch.
            norm.momentum = 0.0
        forward = tf.function(lambda x: model(x, training=True), reduce_retracing=True)
        for x, _ in batches:
            forward(x)
            measured.append([value.numpy() for value in statistics])
    finally:
        undo_inference_mode(in_inference)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not measured:
        raise TrainingError("Statistics are estimated from examples. Received no batch. Pass at least one.")
    for variable, values in zip(statistics, zip(*measured, strict=True), strict=True):
        variable.assign(np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype))
    return len(norms)
