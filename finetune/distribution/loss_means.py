"""Means over the rows of all replicas, in place of those that Keras takes over the rows of one.

Keras takes the mean over a replica's rows and divides it by the number of replicas. That is the mean over the batch
only if all replicas have equally many rows: the last batch of an epoch is weighted wrongly, and so is every batch with
masks, where a mean is over the entries that count. Here the sum over a replica's rows is divided by the number of
entries of all replicas, with the functions of Keras in which a mean is taken replaced while a step is traced.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.distribution.workers import training_workers

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
# TensorFlow traces each replica in a thread of its own, in turns: what is replaced is common, the rows are not.
_REPLICA = threading.local()


def sum_over_replicas(value: Any) -> Any:
    """Returns the sum over all replicas, of a tensor or of each in a list; to be called in each of them.

    Several workers are replicas, too, though TensorFlow does not know: their variables are ordinary ones.
    """
    parts = [part for part in tf.nest.flatten(value) if part is not None]
    if together := training_workers():
        sums = together.sums(parts)
    else:
        replica: Any = tf.distribute.get_replica_context()
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, parts) if parts else []
    if not isinstance(value, list):
        return sums[0]
    remaining = iter(sums)
    return [None if part is None else next(remaining) for part in value]


def exact_means() -> AbstractContextManager[None]:
    """Makes the losses of Keras, in the block, parts of the loss of the batch, in replicas that are `in_share`.

    BatchNormalization that is `synchronized` takes the rows of all workers; those of replicas Keras takes by itself.
    """
    return keras_private.functions_replaced(
        losses={
            "reduce_values": _reduce_values,
            "apply_mask": _apply_mask,
            "scale_loss_for_distribution": lambda own, value: _share_of(value),
            "unscale_loss_for_distribution": lambda own, value: sum_over_replicas(value),
        },
        moments=_moments,
        add_loss=lambda own, layer, loss: _REPLICA.added.extend((layer, each) for each in tf.nest.flatten(loss)),
        own_losses=lambda own, layer: [each for owner, each in _REPLICA.added if owner is layer],
        next_seed=_seed_of_replica,
        applies=lambda: hasattr(_REPLICA, "count"),
    )


@contextmanager
def in_share(count: tf.Tensor, of_batch: tf.Tensor) -> Iterator[None]:
    """Says what of the batch this replica has, for `exact_means`.

    Args:
        count: How many of its rows count: all, or none.
        of_batch: These rows as a fraction of those of all replicas.
    """
    _REPLICA.count, _REPLICA.of_batch = tf.minimum(count, 1), of_batch
    _REPLICA.added = []  # losses that layers add: Keras has one list, which the replicas, in turns, would share
    try:
        yield
    finally:
        del _REPLICA.count, _REPLICA.of_batch, _REPLICA.added


def _counted(value: tf.Tensor) -> tf.Tensor:
    return value * tf.cast(_REPLICA.count, value.dtype)


def _share_of(value: Any) -> Any:
    return value * tf.cast(_REPLICA.of_batch, value.dtype)


def _reduce_values(
    own: Callable[..., Any], values: Any, sample_weight: Any = None, reduction: Any = "sum_over_batch_size"
) -> Any:
    if reduction in (None, "none"):
        return values
    if values.shape.rank == 0:  # a function of the user's has reduced the rows
        return _share_of(values) if reduction in _MEANS else values
    loss = _counted(tf.reduce_sum(values))
    if reduction not in _MEANS:
        return loss
    weights = None if reduction != "mean_with_sample_weight" else sample_weight
    entries = tf.cast(tf.size(values) if weights is None else tf.reduce_sum(weights), loss.dtype)
    return tf.math.divide_no_nan(loss, tf.stop_gradient(sum_over_replicas(_counted(entries))))


def _apply_mask(own: Callable[..., Any], sample_weight: Any, mask: Any, dtype: Any, reduction: Any) -> Any:
    if mask is not None and reduction in ("mean", "sum_over_batch_size"):
        mask = tf.cast(mask, dtype)
        entries = tf.stack([tf.cast(tf.size(mask), dtype), tf.reduce_sum(mask)])
        total, valid = tf.unstack(sum_over_replicas(_counted(entries)))
        mask, reduction = mask * tf.math.divide_no_nan(total, valid), "sum"  # a mask as it is, then
    return own(sample_weight, mask, dtype=dtype, reduction=reduction)


def _moments(own: Callable[..., Any], x: Any, axes: Any, keepdims: bool) -> Any:
    """Returns mean and variance over the rows that count of all replicas.

    In two passes, as on a single device. Keras subtracts the square of the mean from the mean of the squares, which
    loses the digits that both have in common.
    """

    def mean_of(value: Any) -> Any:
        sums = tf.reduce_sum(value, axis=axes, keepdims=True)
        entries = tf.reduce_sum(tf.ones_like(value), axis=axes, keepdims=True)
        total, count = sum_over_replicas([_counted(sums), _counted(entries)])
        return tf.math.divide_no_nan(total, count)

    mean = mean_of(x)
    variance = mean_of(tf.math.squared_difference(x, tf.stop_gradient(mean)))
    return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))


def _seed_of_replica(seed: Any) -> Any:
    """Returns another seed for every replica but the first; of its two numbers the second counts the draws."""
    replica: Any = tf.distribute.get_replica_context()
    together = training_workers()
    number = tf.cast(together.cluster.index if together else replica.replica_id_in_sync_group, seed.dtype)
    return seed + tf.stack([number * tf.constant(0x9E3779B1, seed.dtype), tf.zeros_like(number)])
