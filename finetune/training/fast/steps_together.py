"""What several workers do in a step of the fast loop beside what a single process does; see `compiled_steps.py`.

In the order of a step: each worker has its part of the batch, perhaps an empty one; its random layers draw numbers of
their own; loss and gradients become those of the whole batch, before the optimizer sees them, and so do the statistics
that the forward pass has written; the metrics take the rows of this worker, and are added up when the call is over.
Nothing here is traced where a process trains alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.distribution.loss_means import exact_means, in_share
from finetune.distribution.reductions import metrics_of_all, moments_of_all, padded, sum_step, written_statistics
from finetune.distribution.step_on_replicas import PartOfBatch, rows_of
from finetune.distribution.workers import Workers, training_workers
from finetune.groups.layer_tree import layer_tree
from finetune.variables import tf_variable


class MetricsBuiltError(Exception):
    """Stops the tracing of a function in which Keras has made the variables of metrics: they must be there before."""


@contextmanager
def metrics_together(model: Any) -> Iterator[None]:
    """Lets the steps of the block give the metrics of a model what they are over all workers, if there are several.

    Raises:
        MetricsBuiltError: The block has made variables of metrics.
    """
    workers = training_workers()
    if workers is None:
        yield
        return
    before = _metric_variables(model)
    with metrics_of_all(workers, before):
        yield
        if len(_metric_variables(model)) > len(before):
            raise MetricsBuiltError


def _metric_variables(model: Any) -> list[Any]:
    of_loss = getattr(keras_private.compiled_loss(model), "metrics", None) or ()
    return [*model.metrics_variables, *(variable for metric in of_loss for variable in metric.variables)]


class StepTogether:
    """A step that several workers make.

    Args:
        workers: All workers.
        model: What they train.
        data: The part of the batch that this worker has.

    Attributes:
        data: The same; a row of zeros where it has none.
        part: How much of the batch that is.
    """

    def __init__(self, workers: Workers, model: Any, data: Any):
        rows = rows_of(data)
        fraction = tf.cast(rows, tf.float32)
        [total] = workers.sums([fraction])
        self.workers, self.model = workers, model
        self.data = padded(data, rows) if workers.pads else data
        self.part = PartOfBatch(rows, fraction / total)
        created = [leaf.variable for leaf in layer_tree(model).leaves if not leaf.trainable]
        floats = [variable for variable in created if tf.as_dtype(tf_variable(variable).dtype).is_floating]
        self._before = [(variable, tf_variable(variable).read_value()) for variable in floats]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Makes losses those of this part of the batch, in the block, and random numbers those of this worker."""
        moments = moments_of_all(self.workers, tf.minimum(self.part.count, 1))
        with (
            exact_means(),
            in_share(self.part.count, self.part.of_batch),
            keras_private.synchronized_moments(moments),
        ):
            yield

    def sum(self, loss: Any, gradients: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Returns loss and gradients of the whole batch, and makes the statistics those of it."""
        written = {id(variable) for variable in written_statistics(variable for variable, _ in self._before)}
        changes = [(variable, before) for variable, before in self._before if id(variable) in written]
        return sum_step(self.workers, self.part.of_batch, loss, gradients, changes)
