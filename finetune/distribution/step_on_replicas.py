"""A training step on several replicas: each gets its part of the batch, and what they compute is that of the batch.

`run_on_replicas` calls a step in every replica, with its rows, inside one compiled function. Three things make the
result that of a single device with the same batch, up to rounding:

1. A replica's loss is its part of the loss of the batch: the sum over its rows, divided by what the whole batch is
   divided by (`finetune.distribution.loss_means`). So gradients are summed, by the optimizer (`update_once`).
2. Moving statistics become the mean over the replicas, weighted by their rows. Keras lets the copies diverge, and saves
   those of the first replica.
3. Random layers draw other numbers on each replica, as for other rows on a single device. Keras draws the same.

What still differs: BatchNormalization that is not `synchronized` normalizes by the rows of its replica; losses that
layers add (`add_loss`, activity regularizers) are taken as means over rows; random numbers are not those of a single
device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.loss_means import exact_means, in_share, sum_over_replicas
from finetune.variables import tf_variable


def rows_of(x: Any) -> Any:
    """Returns how many rows the inputs of a batch have, as a scalar tensor."""
    return tf.shape(next(part for part in tf.nest.flatten(x) if part is not None))[0]


class WholeBatch:
    """The part of a batch that the only replica has: all of it."""

    def total(self, loss: Any) -> Any:
        """Returns the loss of the batch, of that of this part."""
        return loss

    def sums(self, tensors: list[Any]) -> list[Any]:
        """Returns the sum of each tensor over all parts; `None` stays."""
        return tensors

    def share(self, value: Any) -> Any:
        """Returns the share that the part has of what is the same for every part, such as a loss of the weights."""
        return value

    def rows(self, x: Any) -> Any:
        """Returns how many rows the part has."""
        return rows_of(x)

    def counted(self, data: Any) -> Any:
        """Returns the rows that count, of inputs, targets, outputs or weights of the part."""
        return data


WHOLE_BATCH = WholeBatch()


class PartOfBatch:
    """The part of a batch that one of several replicas has.

    Where a batch has fewer rows than there are replicas, some get a row that another has, too, which does not count.

    Args:
        count: How many rows of the part count, a scalar tensor.
        of_batch: These rows as a fraction of those of all replicas, a scalar tensor.
    """

    def __init__(self, count: tf.Tensor, of_batch: tf.Tensor):
        self.count, self.of_batch = count, of_batch

    def total(self, loss: Any) -> Any:
        """Returns the loss of the batch, of that of this part; the same on every replica."""
        return sum_over_replicas(loss)

    def sums(self, tensors: list[Any]) -> list[Any]:
        """Returns the sum of each tensor over all parts, the same on every replica; `None` stays."""
        return sum_over_replicas(tensors)

    def share(self, value: Any) -> Any:
        """Returns the share that the part has of what is the same for every part, such as a loss of the weights."""
        return value * tf.cast(self.of_batch, value.dtype) if tf.is_tensor(value) else value * self.of_batch

    def rows(self, x: Any) -> Any:
        """Returns how many rows of the part count."""
        return self.count

    def counted(self, data: Any) -> Any:
        """Returns the rows that count, of inputs, targets, outputs or weights of the part."""

        def cut(value: Any) -> Any:
            if value is None or value.shape.rank == 0:
                return value
            rows = value[: self.count]
            if (mask := keras_private.mask_of(value)) is not None:
                keras_private.set_mask(rows, mask[: self.count])
            return rows

        return tf.nest.map_structure(cut, data)


def run_on_replicas(
    strategy: tf.distribute.Strategy,
    step: Callable[[Any, PartOfBatch], Any],
    data: Any,
    *,
    moving: Sequence[Any] = (),
) -> Any:
    """Calls a step in every replica of this process, each with its part of the rows; call it in a compiled function.

    Args:
        strategy: The strategy under which the variables of the model were made.
        step: Called with the part of the data and its `PartOfBatch`; its results must be those of the batch.
        data: The batch: tensors whose first axis counts the rows, in any structure.
        moving: Variables that the forward pass updates, of which the replicas shall keep the mean.

    Returns:
        The results of the first replica of this process.
    """
    local = len(strategy.extended.worker_devices)

    def in_replica() -> Any:
        replica: Any = tf.distribute.get_replica_context()
        part, count = _part(data, replica.replica_id_in_sync_group % local, local)
        fraction = tf.cast(count, tf.float32)
        share = PartOfBatch(count, fraction / sum_over_replicas(fraction))
        before = [tf.identity(tf_variable(variable)) for variable in moving]
        with in_share(share.count, share.of_batch):
            results = step(part, share)
        _average(moving, before, share.of_batch)
        return results

    with exact_means():
        results = strategy.run(in_replica)
    return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], results)


def moving_variables(model: keras.Model) -> list[Any]:
    """Returns what the forward pass of a model may update in layers that are not frozen: moving statistics."""
    layers = [layer for layer in keras_private.sublayers(model, include_self=True) if layer.trainable]
    made = [variable for layer in layers for variable in keras_private.layer_variables(layer)[1]]
    # Frozen weights are among them, too; those were made to be trained.
    moving = {id(v): v for v in made if tf.as_dtype(v.dtype).is_floating and not tf_variable(v).trainable}
    return list(moving.values())


def _part(batch: Any, replica: Any, replicas: int) -> tuple[Any, tf.Tensor]:
    """Returns a replica's rows of a batch, and how many of them count: all, or none."""
    first = next(part for part in tf.nest.flatten(batch) if part is not None)
    rows = first.nrows() if isinstance(first, tf.RaggedTensor) else tf.shape(first, tf.int64)[0]
    replica = tf.cast(replica, rows.dtype)
    start, stop = replica * rows // replicas, (replica + 1) * rows // replicas

    def cut(value: Any) -> Any:
        if isinstance(value, tf.SparseTensor):
            shape = tf.concat([[tf.maximum(stop, start + 1) - start], value.dense_shape[1:]], 0)
            return tf.sparse.slice(value, tf.concat([[start], tf.zeros_like(shape[1:])], 0), shape)
        return value if value is None or value.shape.rank == 0 else value[start : tf.maximum(stop, start + 1)]

    with tf.device("CPU:0"):  # a GPU then receives its part alone
        return tf.nest.map_structure(cut, batch), tf.cast(stop - start, tf.int32)


def _average(moving: Sequence[Any], before: Sequence[tf.Tensor], weight: tf.Tensor) -> None:
    """Gives variables the mean over the replicas, of which `before` was the same on all of them."""
    if not moving:
        return
    # Of the changes: where there is none, the value stays bit for bit.
    changes = [
        (tf.convert_to_tensor(tf_variable(variable)) - value) * tf.cast(weight, value.dtype)
        for variable, value in zip(moving, before, strict=True)
    ]
    for variable, value, change in zip(moving, before, sum_over_replicas(changes), strict=True):
        tf_variable(variable).assign(value + change)
