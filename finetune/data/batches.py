"""Batches out of rows, as `tf.data` pipelines whose order depends on nothing but the seed and the epoch.

`training_batches` is what models train on; `batches_in_order` and `measurement_batches` give the same rows for what
looks at examples without training on them. All of them take rows by index, from wherever the rows lie
(`finetune.data.rows`).
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from finetune.data.augmentation import Augmentation
from finetune.data.rows import count_rows, rows_of, take_batch
from finetune.errors import DataError

_ORDERED_AT_ONCE = 2**20  # rows


def training_batches(
    x: Any,
    y: Any,
    *,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
    first_step: int = 0,
    sample_weight: Any = None,
    passes: int = 1,
    augmentation: Augmentation | None = None,
    share: tuple[int, int] = (0, 1),
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
        first_step: Number of the batch to begin with in that epoch, from 0 and below the steps of an epoch: the batches
            are those that follow when as many are skipped, and take no time to find.
        sample_weight: Weights of the rows, or `None`.
        passes: How many versions of the inputs `x` holds, one after another, shape `(passes * rows, ...)`; epochs use
            them in turn.
        augmentation: How the rows are changed in every epoch, if they are.
        share: A worker's number, from 0, and the number of workers: each gets its contiguous part of every batch, and
            `batch_size` is that of all workers together. A batch of fewer rows than workers is empty for some.

    Raises:
        DataError: The arrays do not fit together, are empty, or a number is out of range.

    Examples:
        >>> rows = tf.range(5)
        >>> batches = training_batches(rows, rows, batch_size=2, shuffle=False)
        >>> [x.numpy().tolist() for x, y in batches.take(4)]
        [[0, 1], [2, 3], [4], [0, 1]]
    """
    inputs = rows_of(x)
    others = rows_of((y,) if sample_weight is None else (y, sample_weight))
    rows = count_rows(inputs, others, passes)
    _check_position(rows, batch_size, first_epoch, first_step, share)
    steps = steps_per_epoch(rows, batch_size)
    # Blending takes whole batches, which a worker then takes its part of.
    blends = augmentation is not None and bool(augmentation.batch_layers)
    part_of = _whole if blends or share == (0, 1) else lambda indices: _part(indices, share)
    make_order, indices_at = _orders(rows, shuffle, seed)
    # A batch that is made of its rows must be there without one, too.
    ends_empty = _part_size(rows - (steps - 1) * batch_size, share) == 0
    by_row = augmentation is not None or any(array.take_row for array in tf.nest.flatten((inputs, others)))

    def batches(epoch: Any, order: Any) -> Any:
        # The version of this epoch begins at that row of the inputs.
        offset = epoch % passes * rows
        start = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
        numbers = tf.data.Dataset.range(start, steps)

        def chosen(step: Any) -> Any:
            return part_of(indices_at(order, epoch, step * batch_size, tf.minimum((step + 1) * batch_size, rows)))

        if by_row:
            size = batch_size if part_of is _whole else _part_size(batch_size, share)
            indices = numbers.map(chosen).unbatch()
            made = _made_by_row((inputs, *others), numbers, indices, size, epoch, offset, augmentation)
            return made.concatenate(_empty(made)) if ends_empty and part_of is not _whole else made

        def batch(step: Any) -> tuple[Any, ...]:
            indices = chosen(step)
            return take_batch(inputs, indices + offset), *take_batch(others, indices)

        return numbers.map(batch)

    epochs: Any = tf.data.Dataset.range(first_epoch, 2**62).map(lambda epoch: (epoch, make_order(epoch)))
    epochs = epochs.prefetch(1)  # the next order is made in advance
    every = epochs.flat_map(batches).with_options(lean_options())
    if blends and share != (0, 1):
        every = every.map(lambda *data: tf.nest.map_structure(lambda part: _part(part, share), data))
    return every.prefetch(tf.data.AUTOTUNE)


def _check_position(rows: int, batch_size: int, first_epoch: int, first_step: int, share: tuple[int, int]) -> None:
    if batch_size < 1 or first_epoch < 0:
        raise DataError(
            f"`batch_size` must be at least 1 and `first_epoch` at least 0. Received {batch_size} and {first_epoch}."
        )
    steps = steps_per_epoch(rows, batch_size)
    if not 0 <= first_step < steps:
        raise DataError(
            f"`first_step` must be from 0 to {steps - 1}, since an epoch has {steps} batches. Received {first_step}."
        )
    worker, workers = share
    if not 0 <= worker < workers:
        raise DataError(
            f"`share` must be the number of a worker, from 0, and the number of workers. Received {worker} and "
            f"{workers}."
        )
    if batch_size < workers:
        raise DataError(
            f"Every worker takes its part of each batch. Received batches of {batch_size} rows for {workers} workers. "
            "Choose a larger `batch_size`, or fewer workers."
        )


def _whole(indices: Any) -> Any:
    return indices


def _part(values: Any, share: tuple[int, int]) -> Any:
    """Returns a worker's contiguous part of the rows of a batch; the parts differ by a row at most."""
    start, stop = _bounds(tf.shape(values, tf.int64)[0], share)
    return values[start:stop]


def _bounds(rows: Any, share: tuple[int, int]) -> tuple[Any, Any]:
    worker, workers = share
    return worker * rows // workers, (worker + 1) * rows // workers


def _part_size(rows: int, share: tuple[int, int]) -> int:
    start, stop = _bounds(rows, share)
    return stop - start


def _empty(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a batch without a row, of the same structure."""
    zeros = lambda spec: tf.zeros([0, *(size or 0 for size in spec.shape[1:])], spec.dtype)  # noqa: E731
    return tf.data.Dataset.from_tensors(tf.nest.map_structure(zeros, batches.element_spec))


def _orders(rows: int, shuffle: bool, seed: int) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """Returns how the order of an epoch is made, and a function of it that gives the rows at some places in it.

    Up to `_ORDERED_AT_ONCE` rows the order is made as a whole. Making that of 10 million rows takes seconds and 160 MB,
    so beyond it each row is computed from its place, by a permutation that is a function of (seed, epoch).
    """
    stateless: Any = tf.random  # TensorFlow's stubs do not know `experimental`

    def whole(epoch: Any) -> Any:
        indices: Any = tf.range(rows, dtype=tf.int64)
        return (
            stateless.experimental.stateless_shuffle(indices, tf.stack([seed % 2**63, epoch])) if shuffle else indices
        )

    if rows <= _ORDERED_AT_ONCE:
        return whole, lambda order, epoch, start, stop: order[start:stop]

    def at(order: Any, epoch: Any, start: Any, stop: Any) -> Any:
        places = tf.range(start, stop, dtype=tf.int64)
        if not shuffle:
            return places
        # Two words of 32 bits are what TensorFlow takes, so seed and epoch are hashed into them.
        key = stateless.experimental.stateless_fold_in(tf.constant([seed % 2**63, 0], tf.int64), epoch)
        key = tf.cast(tf.math.floormod(key, 2**32), tf.uint32)
        return stateless.experimental.index_shuffle(places, key, tf.constant(rows - 1, tf.int64))

    return lambda epoch: tf.constant(0, tf.int64), at


def _made_by_row(
    arrays: tuple[Any, ...],
    steps: tf.data.Dataset,
    indices: tf.data.Dataset,
    batch_size: int,
    epoch: Any,
    offset: Any,
    augmentation: Augmentation | None,
) -> tf.data.Dataset:
    """Returns the batches of an epoch, of which each row that is worth it is made by a thread of its own.

    Args:
        arrays: Inputs, targets and, where there are some, weights.
        steps: The number of each batch.
        indices: The number of each row, in the order of the epoch.
        batch_size: Rows in a batch.
        epoch: The epoch.
        offset: Row of the inputs with which the version of this epoch begins.
        augmentation: How the rows are changed, if they are.
    """
    flat = tf.nest.flatten(arrays)
    offsets = [offset] * len(tf.nest.flatten(arrays[0])) + [0] * len(tf.nest.flatten(arrays[1:]))
    changed = augmentation.leaf if augmentation else None
    alone = [place for place, array in enumerate(flat) if array.take_row or place == changed]

    def row(place: int, index: Any) -> Any:
        array, at = flat[place], index + offsets[place]
        value = array.take_row(at) if array.take_row else array.take(at[tf.newaxis])[0]
        return augmentation.row(value, epoch, index) if augmentation and place == changed else value

    def batch(step: Any, chosen: Any, *made: Any) -> Any:
        ready = iter(made)
        parts = [
            next(ready) if place in alone else take_batch(array, chosen + offsets[place])
            for place, array in enumerate(flat)
        ]
        data = tf.nest.pack_sequence_as(arrays, parts)
        return augmentation.batch(data, epoch, step) if augmentation else data

    # Autotuning would begin with a single thread, and stay there for long. Twice as many as cores: rows are taken in
    # their order, and wait for one that takes longer.
    rows = _map_and_batch(
        indices,
        lambda index: (index, *(row(place, index) for place in alone)),
        batch_size,
        num_parallel_calls=2 * (os.cpu_count() or 1),
    )
    return tf.data.Dataset.zip((steps, rows)).map(lambda step, of_batch: batch(step, *of_batch))


def _map_and_batch(data: tf.data.Dataset, function: Any, batch_size: int, num_parallel_calls: int) -> tf.data.Dataset:
    """Returns `data.map(function).batch(batch_size)` as a single operation.

    Each row is copied into its batch by the thread that made it, which saves a tenth of the time that images take.
    TensorFlow would have its optimization of graphs make one operation of the two, and warns of the function that it
    had before; but that optimization makes constants of captured arrays.
    """
    fused: Any = inspect.unwrap(tf.data.experimental.map_and_batch)
    return data.apply(fused(function, batch_size, num_parallel_calls=num_parallel_calls))


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


def measurement_batches(
    x: Any,
    y: Any,
    *,
    batch_size: int,
    seed: int,
    sample_weight: Any = None,
    augmentation: Augmentation | None = None,
) -> tf.data.Dataset:
    """Returns shuffled full batches, for measurements that compare batches with each other.

    Each iteration over it has an order of its own. Rows that do not fill a batch are left out, so that the noise of a
    batch depends on its rows alone; if there are fewer rows than `batch_size`, they make one batch.

    Args:
        x: Inputs, as for `training_batches`.
        y: Targets, likewise.
        batch_size: Rows in a batch, >= 1.
        seed: Seed of the orders.
        sample_weight: Weights of the rows, or `None`.
        augmentation: How the rows are changed, if they are; anew in each iteration.
    """
    inputs = rows_of(x)
    others = rows_of((y,) if sample_weight is None else (y, sample_weight))
    rows = count_rows(inputs, others, 1)
    order = tf.data.Dataset.range(rows).shuffle(rows, seed=seed)
    batches = order.batch(min(batch_size, rows), drop_remainder=True)
    if augmentation is None:
        return batches.map(lambda chosen: (take_batch(inputs, chosen), *take_batch(others, chosen)))
    # In place of the epoch and the step: a number that no other batch has.
    numbers = tf.data.Dataset.random(seed=seed % 2**63, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip((batches, numbers)).map(
        lambda chosen, number: augmentation.rows(
            (take_batch(inputs, chosen), *take_batch(others, chosen)), number, chosen, 0
        )
    )


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
