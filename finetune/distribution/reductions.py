"""What a step and its metrics are over all workers, out of what each has computed on its part of the batch.

The loss of a worker is its part of the loss of the batch (`loss_means.py`), so losses and gradients are summed. Moving
statistics become the mean over the workers, by their rows. Metrics are sums in Keras, and are added up: what a call
has added to them on each worker is added on all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.workers import Workers
from finetune.variables import tf_variable


def sum_step(
    workers: Workers, of_batch: Any, loss: Any, gradients: Sequence[Any], changes: Sequence[tuple[Any, Any]]
) -> tuple[Any, list[Any]]:
    """Returns loss and gradients of a whole batch, and averages what the forward pass has changed.

    Everything of one type goes in one collective operation.

    Args:
        workers: All workers.
        of_batch: The rows of this worker as a fraction of the batch, a scalar tensor.
        loss: The part of this worker in the loss of the batch.
        gradients: Of this part; `None` where it does not depend on a variable.
        changes: Moving statistics, each with its value before the step, which is the same on all workers.
    """
    held = [(tf_variable(variable), before) for variable, before in changes]
    # Of the changes: where there is none, the value stays bit for bit.
    parts = [(v.read_value() - before) * tf.cast(of_batch, v.dtype) for v, before in held]
    loss, *sums = workers.sums([loss, *gradients, *parts])
    for (variable, before), change in zip(held, sums[len(gradients) :], strict=True):
        variable.assign(before + change, read_value=False)
    return loss, sums[: len(gradients)]


def written_statistics(candidates: Iterable[Any]) -> list[Any]:
    """Returns the statistics that the forward pass of the step that is being traced has written.

    Args:
        candidates: Variables that were created not trainable.
    """
    graph = tf.compat.v1.get_default_graph()
    floats = [variable for variable in candidates if tf.as_dtype(tf_variable(variable).dtype).is_floating]
    return [variable for variable in floats if keras_private.writes(graph, tf_variable(variable))]


@contextmanager
def metrics_of_all(workers: Workers, variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Adds what the block adds to the variables of metrics on each worker, on all of them.

    So between two calls they are those of a single process that has seen all rows: a checkpoint holds them, and any
    number of workers can go on from it.
    """
    held = list({id(v): v for v in map(tf_variable, variables)}.values())
    before = [variable.read_value() for variable in held]
    yield
    added = workers.sums([variable.read_value() - value for variable, value in zip(held, before, strict=True)])
    for variable, value, more in zip(held, before, added, strict=True):
        variable.assign(value + more, read_value=False)


def moments_of_all(workers: Workers, counts: Any) -> Callable[..., tuple[Any, Any]]:
    """Returns what computes the mean and the variance of a BatchNormalization over the rows of all workers.

    Args:
        workers: All workers.
        counts: 1 where the rows of this worker count, else 0; a scalar tensor.
    """

    def moments(own: Any, x: Any, axes: Any, keepdims: bool) -> tuple[Any, Any]:
        counted = tf.cast(counts, x.dtype)
        size = counted * tf.cast(tf.size(x) / tf.size(tf.reduce_sum(x, axes)), x.dtype)
        sums = [counted * tf.reduce_sum(part, axes, keepdims=True) for part in (x, tf.square(x))]
        total, squares, rows = workers.differentiable_sums([*sums, size])
        mean = tf.math.divide_no_nan(total, rows)
        variance = tf.maximum(tf.math.divide_no_nan(squares, rows) - tf.square(mean), 0.0)
        return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))

    return moments


def padded(data: Any, rows: Any) -> Any:
    """Returns a batch with a row of zeros where it has none: not every layer takes an empty batch.

    Args:
        data: Tensors, whose first axis counts the rows.
        rows: How many the batch has, a scalar.
    """
    more = tf.cast(tf.equal(rows, 0), tf.int32)

    def longer(part: Any) -> Any:
        if part is None:
            return None
        rest = tf.zeros(tf.concat([[more], tf.shape(part)[1:]], 0), part.dtype)
        return tf.concat([part, rest], 0)

    return tf.nest.map_structure(longer, data)
