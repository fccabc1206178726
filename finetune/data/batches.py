"""Batches out of rows, as `tf.data` pipelines whose order depends on nothing but the seed and the epoch.

`training_batches` is what models train on; `batches_in_order` and `measurement_batches` give the same rows for what
looks at examples without training on them. All of them take rows by index, from wherever the rows lie
(`finetune.data.rows`).
"""

import os
from typing import Any

import tensorflow as tf

from finetune.data.rows import count_rows, rows_of, take
from finetune.errors import DataError


def training_batches(
    x: Any,
    y: Any,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
    sample_weight: Any = None,
    passes: int = 1,
) -> tf.data.Dataset:
    """Returns the batches of one epoch after another, without end, in a reproducible order.

    The order of an epoch is a function of `seed` and the number of the epoch alone: what begins at `first_epoch` 3
    gives the batches that what began at 0 gives from its fourth epoch on. As in Keras, the last batch of an epoch
    holds the rows that remain, and floating-point arrays come in `keras.config.floatx()`. Use it as
    `model.fit(batches, steps_per_epoch=steps_per_epoch(rows, batch_size), initial_epoch=first_epoch, epochs=...)`.

    Args:
        x: Inputs: an array or `Rows`, or tuples, lists or dicts of them; the first axis counts the rows. An
            `np.memmap` is read batch by batch, never as a whole; other arrays are copied once, outside of the graph.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        shuffle: Whether every epoch has an order of its own.
        seed: Seed of the order.
        first_epoch: Number of the epoch to begin with, >= 0.
        sample_weight: Weights of the rows, or `None`.
        passes: How many versions of the inputs `x` holds, one after another, shape `(passes * rows, ...)`; epochs use
            them in turn.

    Raises:
        DataError: The arrays do not fit together, are empty, or `batch_size` or `first_epoch` is out of range.

    Example:
        >>> rows = tf.range(5)
        >>> batches = training_batches(rows, rows, batch_size=2, shuffle=False)
        >>> [x.numpy().tolist() for x, y in batches.take(4)]
        [[0, 1], [2, 3], [4], [0, 1]]
    """
    inputs = rows_of(x)
    others = rows_of((y,) if sample_weight is None else (y, sample_weight))
    rows = count_rows(inputs, others, passes)
    if batch_size < 1 or first_epoch < 0:
        raise DataError(
            f"`batch_size` must be at least 1 and `first_epoch` at least 0. Received {batch_size} and {first_epoch}."
        )

    def order(epoch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        indices: Any = tf.range(rows, dtype=tf.int64)
        if shuffle:
            stateless: Any = tf.random  # TensorFlow's stubs do not know `experimental`
            indices = stateless.experimental.stateless_shuffle(indices, tf.stack([seed % 2**63, epoch]))
        return indices, epoch % passes * rows  # the version of this epoch begins at that row of the inputs

    def batches(indices: Any, offset: Any) -> Any:
        if any(array.take_row for array in tf.nest.flatten((inputs, others))):
            return _batches_by_row(inputs, others, indices, offset, batch_size)

        def batch(step: Any) -> tuple[Any, ...]:
            chosen = indices[step * batch_size : (step + 1) * batch_size]
            return take(inputs, chosen + offset), *take(others, chosen)

        return tf.data.Dataset.range(steps_per_epoch(rows, batch_size)).map(batch)

    epochs: Any = tf.data.Dataset.range(first_epoch, 2**62).map(order).prefetch(1)  # the next order is made in advance
    return epochs.flat_map(batches).with_options(lean_options()).prefetch(tf.data.AUTOTUNE)


def _batches_by_row(inputs: Any, others: tuple[Any, ...], indices: Any, offset: Any, batch_size: int) -> Any:
    """Returns the batches of an epoch, of which each row that is worth it is made by a thread of its own."""
    # Inputs may hold several versions of the rows, of which this epoch uses the one at `offset`.
    flat = [(array, offset) for array in tf.nest.flatten(inputs)] + [(array, 0) for array in tf.nest.flatten(others)]

    def rows_at(index: Any) -> tuple[Any, ...]:
        return index, *(array.take_row(index + shift) for array, shift in flat if array.take_row)

    def batch(chosen: Any, *made: Any) -> Any:
        ready = iter(made)
        parts = [next(ready) if array.take_row else array.take(chosen + shift) for array, shift in flat]
        return tf.nest.pack_sequence_as((inputs, *others), parts)

    # Autotuning would begin with a single thread, and stay there for long.
    by_row = tf.data.Dataset.from_tensor_slices(indices).map(rows_at, num_parallel_calls=os.cpu_count())
    return by_row.batch(batch_size).map(batch)


def batches_in_order(
    x: Any, y: Any, *, batch_size: int, limit: int | None = None, sample_weight: Any = None
) -> tf.data.Dataset:
    """Returns every row once, in order, in batches of which the last may be smaller.

    Args:
        x: Inputs, as for `training_batches`.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        limit: At most so many batches; by default all.
        sample_weight: Weights of the rows, or `None`.
    """
    inputs, targets = rows_of(x), rows_of(y)
    count = steps_per_epoch(count_rows(inputs, targets), batch_size)
    batches = training_batches(inputs, targets, batch_size=batch_size, shuffle=False, sample_weight=sample_weight)
    count = count if limit is None else min(count, limit)
    # Keras warns of data that end early where their number is not known.
    return batches.take(count).apply(tf.data.experimental.assert_cardinality(count))


def measurement_batches(x: Any, y: Any, *, batch_size: int, seed: int, sample_weight: Any = None) -> tf.data.Dataset:
    """Returns shuffled full batches, for measurements that compare batches with each other.

    Each iteration over it has an order of its own. Rows that do not fill a batch are left out, so that the noise of a
    batch depends on its rows alone; if there are fewer rows than `batch_size`, they make one batch.

    Args:
        x: Inputs, as for `training_batches`.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        seed: Seed of the orders.
        sample_weight: Weights of the rows, or `None`.
    """
    inputs = rows_of(x)
    others = rows_of((y,) if sample_weight is None else (y, sample_weight))
    rows = count_rows(inputs, others, 1)
    order = tf.data.Dataset.range(rows).shuffle(rows, seed=seed)
    batches = order.batch(min(batch_size, rows), drop_remainder=True)
    return batches.map(lambda chosen: (take(inputs, chosen), *take(others, chosen)))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Returns how many batches the rows make; the last may be smaller."""
    return -(-rows // batch_size)


def lean_options() -> tf.data.Options:
    """Returns options that keep a small pipeline cheap and in its order."""
    options = tf.data.Options()
    options.deterministic = True
    # Rewriting the graph of so small a pipeline costs more than it saves, and makes constants of captured arrays.
    options.experimental_optimization.apply_default_optimizations = False
    return options
