"""How hard each layer group is pulled: the norm of its gradients against the norm of its weights.

References:
    Lee et al. (2023), Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, section 3 (Auto-RGN),
    https://arxiv.org/abs/2210.11466
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError, quote
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import freeze
from finetune.training.snapshot import no_trace
from finetune.variables import tf_variable


def relative_gradient_norms(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    batches: tf.data.Dataset,
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Measures the norm of the gradient of every group over the norm of its weights, without training.

    Frozen groups are measured too, as if they were trained. Weights, moving statistics, random state and what is frozen
    are as before afterwards.

    Args:
        model: A compiled model, frozen as `groups` say.
        groups: All of its layer groups.
        batches: Batches of inputs and targets; each gives one measurement.
        on_batch: Told the batches done.

    Returns:
        The ratios of each group with trainable weights, by its name, shape `(batches,)`.

    Raises:
        TrainingError: A gradient is no finite number, a group gets none, or all its weights are 0.
    """
    groups = [group for group in groups if group.trainable]
    ratios = []
    try:
        freeze(model, [replace(group, frozen=False) for group in groups])
        norms = ratio_function(model, groups)
        with no_trace(model):
            for done, (x, y) in enumerate(batches, start=1):
                ratios.append(norms(x, y).numpy())
                on_batch(done)
    finally:
        freeze(model, groups)
    found = {group.name: column for group, column in zip(groups, np.transpose(ratios), strict=True)}
    check_ratios(found)
    return found


def check_ratios(found: Mapping[str, np.ndarray]) -> None:
    """Raises a TrainingError that names the groups whose ratios are no positive numbers."""
    wrong = [name for name, column in found.items() if not (np.isfinite(column).all() and column.any())]
    if wrong:
        raise TrainingError(
            "A relative gradient norm is a positive number. There is none for "
            f"{quote(wrong)}: the gradient is 0 or no number, or all weights are 0. Look for NaN in the data, for "
            "layers that do not lead to the loss, and for fresh weights that all begin at 0."
        )


def ratio_function(model: keras.Model, groups: Sequence[LayerGroup]) -> Callable[..., tf.Tensor]:
    """Makes a compiled function of inputs and targets that returns a ratio for each group, which must be trainable."""
    variables = [[tf_variable(leaf.variable) for leaf in group.trainable] for group in groups]

    @tf.function(reduce_retracing=True)
    def norms(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss: Any = model.compute_loss(x, y, model(x, training=True), training=True)
        gradients: Any = tape.gradient(loss, variables)
        pairs = zip(gradients, variables, strict=True)
        return tf.stack([_global_norm(gradient) / _global_norm(weights) for gradient, weights in pairs])

    return norms


def _global_norm(tensors: Sequence[tf.Tensor | tf.IndexedSlices | None]) -> tf.Tensor:
    dense = [tf.cast(tf.convert_to_tensor(tensor), tf.float32) for tensor in tensors if tensor is not None]
    return tf.linalg.global_norm(dense) if dense else tf.constant(float("nan"))


def auto_rgn(norms: Mapping[str, float], peak: float) -> dict[str, float]:
    """Returns a rate for each group: `peak` for the largest relative gradient norm, the others in proportion."""
    return {name: peak * norm / max(norms.values()) for name, norm in norms.items()}
