"""What a step and its metrics are over all workers, out of what each has computed on its part of the batch.

The loss of a batch is a mean over its N rows. A worker with n of them has the mean over these, so

    loss = sum(n * loss of the worker) / N,

and so have the gradients, which are linear in the loss; with regularization losses, too, as the n add up to N. The
moving statistics of BatchNormalization are linear in the statistics of the batch, and are averaged alike: what they
become is what they are with the mean of the workers' statistics. Metrics are sums in Keras, and are added up: what a
call has added to them on each worker is added on all.

A mean that is not over rows (`mean_with_sample_weight`, or over the steps of sequences that are masked) weighs the
parts of the workers by their rows all the same, as Keras does with the replicas of a strategy.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.workers import Workers
from finetune.variables import tf_variable


def sum_step(
    workers: Workers, rows: Any, loss: Any, gradients: Sequence[Any], statistics: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """Returns loss and gradients of a whole batch, and averages the statistics that the forward pass has written.

    Everything of one type goes in one collective operation.

    Args:
        workers: All workers.
        rows: Rows of this worker's part, a scalar; 0 where the batch has fewer rows than there are workers.
        loss: The mean over them.
        gradients: Of this loss; `None` where it does not depend on a variable.
        statistics: Variables that are averaged.
    """
    share = tf.cast(rows, tf.float32)
    variables = [tf_variable(variable) for variable in statistics]
    parts = [loss, *gradients, *(variable.read_value() for variable in variables)]
    total, *sums = workers.sums([share, *(_times(part, share) for part in parts)])
    loss, *means = (_times(part, 1.0 / total) for part in sums)
    for variable, mean in zip(variables, means[len(gradients) :], strict=True):
        variable.assign(mean, read_value=False)
    return loss, means[: len(gradients)]


def _times(tensor: Any, factor: Any) -> Any:
    """Returns the product, 0 where the factor is 0 whatever the tensor is."""
    if tensor is None:
        return None
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(_times(tensor.values, factor), tensor.indices, tensor.dense_shape)
    return tf.math.multiply_no_nan(tensor, tf.cast(factor, tensor.dtype))


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


@contextmanager
def own_seeds(workers: Workers, states: Iterable[Any]) -> Iterator[None]:
    """Gives the random layers of each worker numbers of their own in the block: the workers have different rows.

    Afterwards the seeds are those of the chief, whose checkpoint holds them.

    Args:
        workers: All workers.
        states: Variables of shape `(2,)`: a seed, which is changed, and a counter.
    """
    held = [tf_variable(state) for state in states] if not workers.is_chief else []

    def change() -> None:
        for state in held:
            key = tf.cast(tf.constant([workers.cluster.index * 0x9E3779B1 % 2**31, 0], tf.int64), state.dtype)
            state.assign(tf.bitwise.bitwise_xor(state.read_value(), key), read_value=False)

    change()
    yield
    change()


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
