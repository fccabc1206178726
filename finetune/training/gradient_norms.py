"""How far a step would move each layer group: the norm of its gradients relative to the norm of its weights.

    ratio(group) = sqrt(sum of g^2 over its weights) / sqrt(sum of w^2 over its weights)

Surgical fine-tuning (Auto-RGN) gives every group a learning rate in proportion to this ratio, measured on the data of
the new task: groups whose weights the task pulls hard are trained fast, the others hardly.

References:
    Lee et al. (2023), Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, section 3 (Auto-RGN),
    https://arxiv.org/abs/2210.11466
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune import keras_private
from finetune.errors import TrainingError, quote
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import freeze
from finetune.training.snapshot import no_trace
from finetune.training.step import loss_and_gradients


def relative_gradient_norms(
    model: keras.Model,
    groups: Sequence[LayerGroup],
    batches: Iterable[tuple[Any, ...]],
    *,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Measures the norm of the gradient of every group over the norm of its weights, without training.

    Frozen groups are measured too, as if they were trained. Weights, moving statistics, random state and what is frozen
    are the same afterwards.

    Args:
        model: A compiled model, frozen as `groups` say.
        groups: All of its layer groups.
        batches: Batches of inputs and targets, and of weights of rows if there are some; each gives one measurement.
        on_batch: Called after each batch with the number of batches done.

    Returns:
        The ratios of each group with trainable weights, by its name, shape `(batches,)`.

    Raises:
        TrainingError: A gradient is not a finite number, a group gets none, or all its weights are 0.
    """
    opened = [replace(group, frozen=False) for group in groups]
    measured = [group for group in opened if group.trainable]  # not what other code froze, nor statistics alone
    ratios = []
    try:
        # Frozen variables are not watched by a tape, so all groups are trainable while they are measured.
        freeze(model, opened)
        ratios_of_batch = ratio_function(model, measured)
        # A forward pass with `training=True` updates moving statistics and draws random numbers.
        with no_trace(model):
            for done, batch in enumerate(batches, start=1):
                ratios.append(ratios_of_batch(*batch).numpy())
                on_batch(done)
    finally:
        freeze(model, groups)
    norms = {group.name: column for group, column in zip(measured, np.transpose(ratios), strict=True)}
    check_ratios(norms)
    return norms


def check_ratios(norms: Mapping[str, np.ndarray]) -> None:
    """Checks that every group has a relative gradient norm.

    Args:
        norms: The ratios of each group, by its name, shape `(batches,)`.

    Raises:
        TrainingError: The ratios of a group are not finite, or all 0. It names these groups.
    """
    wrong = [name for name, column in norms.items() if not (np.isfinite(column).all() and column.any())]
    if wrong:
        raise TrainingError(
            "A relative gradient norm must be a positive number. It is not for "
            f"{quote(wrong)}: the gradient is 0 or not finite, or all weights are 0. Look for NaN in the data, for "
            "layers that do not lead to the loss, and for new weights that all start at 0."
        )


def ratio_function(model: keras.Model, groups: Sequence[LayerGroup]) -> Callable[..., tf.Tensor]:
    """Makes a compiled function of a batch that returns the ratio of each group, shape `(groups,)`.

    The batch is passed as inputs, targets and weights of rows; the last two may be missing. The loss is the one that
    is trained: as Keras' `train_step` computes it, with these weights.

    Args:
        model: A compiled model.
        groups: The groups, each with weights that are trainable in the model now.
    """
    weights_of_groups = [[leaf.variable for leaf in group.trainable] for group in groups]

    # Without AutoGraph, as Keras' own train function.
    @tf.function(reduce_retracing=True, autograph=False)
    def ratios(x: Any, y: Any = None, sample_weight: Any = None) -> tf.Tensor:
        def forward() -> tuple[Any, None]:
            return loss_of_batch(model, (x, y, sample_weight)), None

        # The loss is not scaled, though the optimizer may do so: the ratio is of the gradients as they are.
        _, _, gradients = loss_and_gradients(forward, weights_of_groups)
        # A single backward pass for all groups, whose gradients come back group by group.
        pairs = zip(gradients, weights_of_groups, strict=True)
        return tf.stack([global_norm(gradient) / global_norm(weights) for gradient, weights in pairs])

    return ratios


def loss_of_batch(model: Any, batch: Any, forward: Callable[..., Any] | None = None) -> Any:
    """Returns the loss of a batch as Keras' `train_step` computes it.

    Args:
        model: A compiled model.
        batch: Inputs, targets and weights of rows; the last two may be missing.
        forward: What is called, as `forward(x, training=True)`, in place of the model.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    options = {"training": True} if keras_private.takes_training(model) else {}
    y_pred = (forward or model)(x, **options)
    return keras_private.compute_loss(model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def global_norm(tensors: Sequence[Any]) -> tf.Tensor:
    """Returns the norm of all tensors together; NaN if there are none, so that `check_ratios` names the group."""
    # An embedding has `IndexedSlices`: rows that occur twice in the batch must be added before they are squared, which
    # the conversion to a dense tensor does. Half-precision gradients are squared in float32, since they would overflow.
    dense = [tf.cast(tf.convert_to_tensor(tensor), tf.float32) for tensor in tensors if tensor is not None]
    return tf.linalg.global_norm(dense) if dense else tf.constant(float("nan"))


def auto_rgn(norms: Mapping[str, float], peak: float) -> dict[str, float]:
    """Returns a rate for each group: `peak` for the largest relative gradient norm, the others in proportion.

    >>> auto_rgn({"body": 0.5, "head": 2.0}, peak=1e-2)
    {'body': 0.0025, 'head': 0.01}
    """
    return {name: peak * norm / max(norms.values()) for name, norm in norms.items()}
