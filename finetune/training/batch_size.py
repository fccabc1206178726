"""`train.batch_size: auto`: the largest batch of which a training step fits into memory.

Steps are made with batches of 2, 4, 8, ... rows, and the most memory that the process has had is read after each. What
a step takes grows in proportion to its rows, so the growth from one size to the next says what twice the rows will
take, and a size that would take too much is not tried. On a graphics card, whose memory is not the process's, it is
tried until TensorFlow has none left. All of these steps together take about half an epoch at most.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.available_memory import available_memory, peak_memory, used_memory
from finetune.data.batches import training_batches
from finetune.data.examples import Examples, leaves
from finetune.errors import MachineError, TrainingError, reason
from finetune.machine_failures import failure_text
from finetune.results.formatting import size_text
from finetune.training.fast.fast_loop import loop_of_replicas
from finetune.training.snapshot import no_trace

FEWEST_STEPS, FEWEST_ROWS = 8, 8  # of an epoch, and of a batch; the second comes first where there are few rows
MOST_ROWS = 1024  # more need other learning rates, and are seldom faster
FIRST = 2  # rows of the smallest batch that is tried
_SHARE = 0.8  # of the memory that is available; the rest is for what else a run keeps, such as its own logs
_STEPS = 2  # with each size, since the batch after this is read meanwhile


@dataclass(frozen=True)
class BatchSize:
    """A batch size that was chosen.

    Attributes:
        rows: Rows in a batch.
        needed: What steps of this size took, in bytes, beside what the process had before.
        available: The bytes that were available.
        refused: Why twice as many do not fit into memory; empty where memory is no limit.
    """

    rows: int
    needed: float
    available: int
    refused: str = ""

    def sentence(self, rows: int) -> str:
        """Returns what was chosen, and why, as a sentence.

        Args:
            rows: All training rows.
        """
        limit = (
            f"the largest power of two that fits into memory: {self.refused}"
            if self.refused
            else f"{bound_text()}; {rows:,} rows to train on. Steps took {size_text(self.needed)} of memory, and "
            f"{size_text(self.available)} are available"
        )
        return (
            f"batch size: {self.rows}, {limit}. The learning rates stay as they are written; `train.learning_rate: "
            "auto` measures them for this size"
        )


def bound_text() -> str:
    """Returns the bounds of the size, as a phrase."""
    return (
        f"the largest power of two up to {MOST_ROWS:,} with at least {FEWEST_STEPS} steps in an epoch, but "
        f"{FEWEST_ROWS} where there are few rows"
    )


def most_rows(rows: int) -> int:
    """Returns the largest batch size for so many training rows, a power of two.

    >>> [most_rows(rows) for rows in (1, 100, 1_000, 10**6)]
    [1, 8, 64, 1024]
    """
    return 2 ** (min(max(rows // FEWEST_STEPS, FEWEST_ROWS), rows, MOST_ROWS).bit_length() - 1)


def measure_batch_size(model: keras.Model, examples: Examples) -> BatchSize:
    """Returns the largest batch size that fits into memory; the model and the random state are left as they were.

    Args:
        model: Compiled, with all trainable that is trained in any phase.
        examples: The examples.

    Raises:
        MachineError: Not even the smallest batch fits.
        TrainingError: A step fails for another reason.
    """
    begun, available = used_memory(), available_memory()
    arrays = [leaf for part in (examples.x_train, examples.y_train) for _, leaf in leaves("", part)]
    # A run copies the rows in memory once; files that are mapped are read batch by batch.
    copied = sum(each.nbytes for each in arrays if isinstance(each, np.ndarray) and not isinstance(each, np.memmap))

    def steps_of(size: int) -> float:
        chosen = np.linspace(0, len(examples.train) - 1, min(_STEPS * size, len(examples.train))).astype(int)
        few = examples.train.select(chosen)
        options: dict[str, Any] = {"sample_weight": few.weights, "augmentation": examples.augmentation}
        batches = training_batches(few.x, few.y, batch_size=size, **options)
        model.fit(
            batches,
            steps_per_epoch=min(_STEPS, len(chosen)),
            verbose=0,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
            shuffle=False,
            callbacks=loop_of_replicas(model),
        )
        return max(peak_memory() - begun, 0)

    try:
        with no_trace(model):
            return largest_batch(steps_of, most_rows(len(examples.train)), available=available, reserved=copied)
    finally:
        model.train_function = None


def largest_batch(steps_of: Callable[[int], float], most: int, *, available: int, reserved: float = 0.0) -> BatchSize:
    """Returns the largest power of two of rows, up to `most`, with which steps fit into memory.

    Args:
        steps_of: Makes steps with batches of so many rows, and returns the bytes that steps have taken so far at most.
        most: The largest size, a power of two.
        available: The bytes that are available.
        reserved: What else a run will take, in bytes, >= 0.

    Raises:
        MachineError: Not even the smallest batch fits.
        TrainingError: A step fails for another reason.
    """
    size, limit, fits, refused = min(FIRST, most), _SHARE * available - reserved, BatchSize(0, 0.0, available), ""
    before = math.inf
    while size <= most:
        grown = fits.needed - before
        # Without growth the steps had room in what the process had already: they took no more than that.
        expected = fits.needed + 2 * grown if grown > 0 else 2 * fits.needed
        # The first steps also take what is taken once, as for compiling, and twice of that is more than will be.
        if expected > (limit if math.isfinite(before) else available - reserved):
            refused = f"{size:,} rows would take about {size_text(expected)}"
            break
        try:
            needed = steps_of(size)
        except Exception as error:  # of a layer, a loss or a metric, too
            what = failure_text(error)
            if not what and not isinstance(error, tf.errors.ResourceExhaustedError):
                raise TrainingError(
                    f"`train.batch_size: auto` makes a few steps. Steps of {size} rows fail: {reason(error)}. Write a "
                    "number of rows to train without them."
                ) from error
            if not fits.rows:
                raise MachineError(f"A training step of {size} rows does not fit into memory. {what}") from error
            refused = f"steps of {size:,} rows end for lack of memory"
            break
        if fits.rows and needed > limit:
            refused = f"steps of {size:,} rows take {size_text(needed)}"
            break
        before = fits.needed if fits.rows else math.inf
        fits, size = BatchSize(size, needed, available), 2 * size
    if refused:
        other = f", {size_text(reserved)} are for the rows" if reserved > 0.01 * available else ""
        refused += f"; {size_text(available)} are available{other}"
    return BatchSize(fits.rows, fits.needed, available, refused)
