"""What several workers do in a step of the fast loop beside what a single process does; see `compiled_steps.py`.

In the order of a step: each worker has its part of the batch, perhaps an empty one; its random layers draw numbers of
their own; loss and gradients become those of the whole batch, before the optimizer sees them, and so do the statistics
that the forward pass has written; the metrics take the rows of this worker, and are added up when the call is over.
Nothing here is traced where a process trains alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.distribution.reductions import metrics_of_all, own_seeds, padded, sum_step, written_statistics
from finetune.distribution.step_on_replicas import rows_of
from finetune.distribution.workers import Workers, training_workers
from finetune.groups.layer_tree import layer_tree
from finetune.training.snapshot import seeds


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


@dataclass(frozen=True)
class StepTogether:
    """A step that several workers make.

    Attributes:
        workers: All workers.
        model: What they train.
        data: The part of the batch that this worker has; a row of zeros where it has none.
        rows: How many rows this worker has, a scalar tensor.
    """

    workers: Workers
    model: Any
    data: Any
    rows: Any

    @classmethod
    def begin(cls, model: Any, data: Any) -> "StepTogether | None":
        """Begins a step; `None` where this process trains alone."""
        workers = training_workers()
        if workers is None:
            return None
        rows = rows_of(data)
        return cls(workers, model, padded(data, rows) if workers.pads else data, rows)

    def loss(self, loss: Any) -> Any:
        """Returns the loss of the rows of this worker; 0 where it has none."""
        return tf.where(self.rows > 0, loss, tf.zeros_like(loss)) if self.workers.pads else loss

    def seeds(self) -> AbstractContextManager[None]:
        """Returns a block in which random layers draw numbers of this worker's own."""
        return own_seeds(self.workers, seeds(self.model))

    def sum(self, loss: Any, gradients: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Returns loss and gradients of the whole batch, and makes the statistics those of it."""
        created = [leaf.variable for leaf in layer_tree(self.model).leaves if not leaf.trainable]
        return sum_step(self.workers, self.rows, loss, gradients, written_statistics(created))

    def own_rows(self, parts: Any) -> Any:
        """Returns the rows of this worker alone, for the metrics."""
        if not self.workers.pads:
            return parts
        return tf.nest.map_structure(lambda part: None if part is None else part[: self.rows], parts)
