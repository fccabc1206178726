"""One update for all replicas: gradients are summed first, then accumulated and clipped once.

A Keras optimizer clips and accumulates in every replica before it sums. So a global norm is that of one replica's part
of the batch; and accumulation fails, since its update runs in a conditional, where replicas cannot be merged. With a
single replica `update_once` and `in_every_replica` only call `step`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import tensorflow as tf

_blocks_of_sums = 0  # in all threads: TensorFlow traces each replica in one of its own


@contextmanager
def gradients_summed() -> Iterator[None]:
    """Says that the gradients in the block are sums over the replicas already, which `update_once` sums otherwise."""
    global _blocks_of_sums
    _blocks_of_sums += 1
    try:
        yield
    finally:
        _blocks_of_sums -= 1


def update_once(step: Callable[[list[Any], Any], None], gradients: list[Any], variables: Any) -> None:
    """Calls `step(gradients, variables)` once for all replicas, with the sum of their gradients.

    Args:
        step: Called in the cross-replica context if there are several replicas.
        gradients: The gradients of this replica.
        variables: Passed on.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        step(gradients, variables)
        return

    def update(strategy: tf.distribute.Strategy, per_replica: list[Any]) -> None:
        # After `all_reduce` every replica has the same sum: that of the first is enough.
        step([strategy.experimental_local_results(g)[0] for g in per_replica], variables)

    sums = gradients if _blocks_of_sums else replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    replica.merge_call(update, args=(sums,))


def in_every_replica(step: Callable[..., None], *args: Any) -> None:
    """Calls `step(*args)` in every replica, from within `update_once`: Keras' update rules expect a replica context."""
    if tf.distribute.in_cross_replica_context():
        tf.distribute.get_strategy().extended.call_for_each_replica(step, args=args)
    else:
        step(*args)


def scope_from_outside(strategy: tf.distribute.Strategy) -> AbstractContextManager[Any]:
    """Returns a block in which variables are made for a strategy, unless the caller is in it.

    A `MirroredStrategy` of a single device asks for its scope, too; TensorFlow's default strategy does not.
    """
    is_inside = tf.distribute.has_strategy() or strategy is tf.distribute.get_strategy()
    return nullcontext() if is_inside else strategy.scope()
