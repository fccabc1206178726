"""What several workers agree on while they train: when to stop, and that they still hold the same weights."""

import zlib
from typing import Any

import keras

from finetune.checksum import as_array
from finetune.distribution.workers import Workers
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import layer_tree
from finetune.interruption import Stopped, stopped


class StopTogether(keras.callbacks.Callback):
    """Raises `Stopped` on all workers after the same step, where a signal asks one of them to end.

    Put it last in the list of callbacks, in place of `StopAtSignal`.

    Args:
        workers: All workers.
    """

    def __init__(self, workers: Workers):
        super().__init__()
        self.workers = workers

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch + 1 != (self.params or {}).get("steps"):  # the last step of an epoch lets the epoch end
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._stop()

    def _stop(self) -> None:
        stop = stopped()
        number = self.workers.any(stop and stop.signal_number, "the end of a call of the train function")
        if number:
            raise stop or Stopped(number)


class SameWeights(keras.callbacks.Callback):
    """Ends `fit` with an error where the weights of the workers are no longer the same, bit for bit, after an epoch.

    They are as long as each worker makes the same updates; a layer that writes a weight in Python, or a machine that
    computes something else, shows here.

    Args:
        workers: All workers.

    Raises:
        TrainingError: In `fit`: which weights differ.
    """

    def __init__(self, workers: Workers):
        super().__init__()
        self.workers = workers

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._check("at the start of training")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(f"after epoch {epoch + 1}")

    def _check(self, when: str) -> None:
        leaves = layer_tree(self.model).leaves
        sums = [zlib.crc32(as_array(leaf.variable).tobytes()) for leaf in leaves]
        of_all = self.workers.channel.exchange(zlib.crc32(repr(sums).encode()), f"the weights {when}")
        if len(set(of_all)) == 1:
            return
        each = self.workers.channel.exchange(sums, f"the weights {when}, one by one")
        names = [leaf.name for leaf, values in zip(leaves, zip(*each, strict=True), strict=True) if len({*values}) > 1]
        raise TrainingError(
            f"All workers hold the same weights, bit for bit. {when[0].upper()}{when[1:]} {len(names)} of "
            f"{len(leaves)} differ between them: {quote(names)}. Look for a layer that writes weights outside of "
            "TensorFlow's graph, and whether all machines have the same processors and packages."
        )
