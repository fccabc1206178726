"""How long training waits for its data: measured in the pipeline, so that a step has no operation more."""

import time
from typing import Any

import keras
import tensorflow as tf

from finetune.data.examples import Examples, leaves
from finetune.data.rows import Rows

_WORTH_SAYING = 0.05  # of the time of the steps


class DataWait(keras.callbacks.Callback):
    """Adds up how long `fit` waits for batches of a dataset that `timed` returned.

    A callback cannot see it, since several steps share a call. So a stage at the end of the pipeline takes the time in
    front of and behind the stage that has the batches ready.

    Attributes:
        share: Share of the time of the training steps that was spent waiting; `None` before training, and where rows
            are in memory, which nothing waits for.
    """

    not_resumed = ("_read", "_begun", "_ended")

    def __init__(self) -> None:
        super().__init__()
        with tf.device("CPU:0"):
            self._clock = tf.Variable(
                tf.zeros((), tf.float64), trainable=False
            )  # seconds waited, also outside of steps
        self._read = 0.0  # the clock when it was last read
        self._waited, self._steps = 0.0, 0.0  # seconds of the steps
        self._begun, self._ended = 0.0, 0.0

    def timed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the same batches from a dataset that notes how long each was waited for."""

        def note(begun: Any, batch: Any) -> Any:
            # The batch is there when this is run: `zip` asks its datasets one after the other.
            with tf.control_dependencies([self._clock.assign_add(tf.timestamp() - begun)]):
                return tf.nest.map_structure(tf.identity, batch)

        begun = tf.data.Dataset.range(2**62).map(lambda number: tf.timestamp())
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        return tf.data.Dataset.zip((begun, batches)).map(note).with_options(options)

    @property
    def share(self) -> float | None:
        """Share of the time of the training steps."""
        return min(self._waited / self._steps, 1.0) if self._waited else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun = self._ended = time.perf_counter()
        # What was read to choose the number of steps in a call is no training.
        self._read = float(self._clock)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._ended = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += self._ended - self._begun  # validation comes after the last batch, and is not in it
        self._waited += float(self._clock) - self._read


def reads_from_disk(examples: Examples) -> bool:
    """Returns whether training rows are made when they are taken, so that training may have to wait for them."""
    made = (leaf for _, leaf in leaves("", examples.x_train) if isinstance(leaf, Rows) and not leaf.is_ready)
    return bool(examples.augmentation) or any(made)


def advice_on_wait(share: float | None, examples: Examples, *, keeps: bool) -> str:
    """Returns a sentence about the time spent waiting for data; empty where it is not worth saying.

    Args:
        share: Share of the time of the training steps, or `None`.
        examples: The examples.
        keeps: Whether decoded rows are kept already.
    """
    if share is None or share < _WORTH_SAYING:
        return ""
    work = "reading, decoding and augmenting" if examples.augmentation else "reading and decoding"
    advice = "Fewer or cheaper layers in `data.augment`, and more" if examples.augmentation else "More"
    keep = "" if keeps else "`data.keep: memory` or `disk` decodes each row only once. "
    return (
        f"data: {share:.0%} of the time of the training steps went into waiting for {work} rows. {keep}{advice} "
        "processor cores make it less"
    )
