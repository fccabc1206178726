"""This process as one of the workers of a run: the others, the sums over all of them, and what they decide together.

Every worker holds the whole network as an ordinary Keras model, takes its part of each batch, and makes the ordinary
step (`finetune.training.fast.compiled_steps`), in which the gradients are summed over all workers before anything is
done with them. So all make the same update, and hold the same weights, slots and metrics after it, bit for bit;
nothing else in the package has to know how many there are.

TensorFlow has the engine: `MultiWorkerMirroredStrategy` starts its servers and sums by collective operations (a ring on
CPUs, NCCL on GPUs). Its scope is not used: with variables of a strategy, Keras' `fit` fails
(https://github.com/keras-team/keras/issues/20585), and what reads and writes weights would have to know of replicas.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from finetune import keras_private
from finetune.distribution.channel import Channel
from finetune.distribution.cluster import VARIABLE, Cluster, host_and_port
from finetune.distribution.worker_processes import LAUNCHER
from finetune.errors import FinetuneError, TrainingError, printable_lines, reason

GRACE_SECONDS = 20.0  # from the loss of a worker until this one has to have ended


class Workers:
    """All workers of a run, as one of them sees them. Made by `join`.

    Attributes:
        cluster: Their addresses, and the number of this one.
        channel: What connects them beside TensorFlow.
        share: The number of this worker, and how many there are, as `training_batches` takes it.
        pads: Whether a batch may have fewer rows than there are workers.
    """

    def __init__(self, channel: Channel, strategy: Any):
        self.channel, self.cluster, self._strategy = channel, channel.cluster, strategy
        self.share = self.cluster.index, self.cluster.workers
        self.pads = False

    def __len__(self) -> int:
        return self.cluster.workers

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run folder."""
        return self.cluster.is_chief

    def sums(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns the sum of each tensor over all workers; `None` stays. For functions that are being traced.

        Tensors of one type go together in a single collective operation.

        Args:
            tensors: Dense tensors, which have the same shapes everywhere, or `IndexedSlices` with any number of rows.
        """
        of_type: dict[Any, list[int]] = {}
        results = list(tensors)
        for place, tensor in enumerate(tensors):
            if isinstance(tensor, tf.IndexedSlices):
                results[place] = self._sum(tensor)
            elif tensor is not None:
                of_type.setdefault(tensor.dtype, []).append(place)
        for places in of_type.values():
            parts = [tf.reshape(tensors[place], [-1]) for place in places]
            sizes = [tf.size(part) for part in parts]
            for place, total in zip(places, tf.split(self._sum(tf.concat(parts, 0)), sizes), strict=True):
                results[place] = tf.reshape(total, tf.shape(tensors[place]))
                results[place].set_shape(tensors[place].shape)
        return results

    def differentiable_sums(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns what `sums` returns; the gradient of a sum is the sum of the gradients of all workers."""

        @tf.custom_gradient
        def total(*parts: Any) -> Any:
            return self.sums(parts), lambda *upstream: self.sums(upstream)

        return list(total(*tensors))

    def _sum(self, tensor: Any) -> Any:
        def in_replica() -> Any:
            # Within the strategy every tensor has the device of its replica, which the sum asks for.
            parts = tf.nest.map_structure(tf.identity, tensor, expand_composites=True)
            replica: Any = tf.distribute.get_replica_context()
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, parts)

        return self._strategy.run(in_replica)

    def gathered(self, tensor: Any) -> Any:
        """Returns the tensors of all workers one behind another, in their order. For functions that are being traced.

        Args:
            tensor: A dense tensor, which has the same shape everywhere but for its first axis.
        """

        def in_replica() -> Any:
            replica: Any = tf.distribute.get_replica_context()
            return replica.all_gather(tf.identity(tensor), axis=0)

        return self._strategy.run(in_replica)

    def agree(self, value: Any, what: str) -> Any:
        """Returns the value that the chief has, for what is measured or read off a clock; all must call it."""
        return self.channel.exchange(value if self.is_chief else None, what)[0]

    def any(self, value: Any, what: str) -> Any:
        """Returns the first value of a worker that is neither `None` nor empty; `None` without one."""
        return next((each for each in self.channel.exchange(value, what) if each), None)


_joined: Workers | None = None
_training: Workers | None = None  # the same, while they train together


def workers() -> Workers | None:
    """Returns the workers of the run that this process belongs to; `None` for a single process."""
    return _joined


def training_workers() -> Workers | None:
    """Returns the workers over which the steps that are traced now sum; `None` where a process steps for itself."""
    return _training


def lost_worker(seconds: float = 5.0) -> str:
    """Returns a sentence on the worker that is gone; empty where all are there, or there are no others.

    Args:
        seconds: How long to wait for it: TensorFlow may notice it before the connection does.
    """
    end = time.monotonic() + seconds
    while _joined and not _joined.channel.lost and time.monotonic() < end:
        time.sleep(0.1)
    return f"All workers of a run train together. {_joined.channel.lost}" if _joined and _joined.channel.lost else ""


@contextmanager
def training_together() -> Iterator[Workers | None]:
    """Lets the steps that are traced in the block sum over the workers of the run, if there are several."""
    global _training
    before, _training = _training, _joined
    try:
        yield _joined
    finally:
        _training = before


def join(channel: Channel) -> Workers:
    """Makes this process a worker: starts TensorFlow's server, which waits for those of the others.

    Call it before the first operation of TensorFlow.

    Args:
        channel: The connection with the others, which has compared their versions.

    Raises:
        FinetuneError: TensorFlow cannot start.
    """
    global _joined
    cluster = channel.cluster
    channel.on_lost = end_after_loss
    _watch_launcher(channel)
    _choose_gpu(cluster)
    os.environ[VARIABLE] = cluster.to_tf_config()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        channel.check()
        channel.close(reason(error))
        raise FinetuneError(
            f"TensorFlow starts a server at the address of each worker. That of {cluster.name(cluster.index)} does not "
            f"start: {reason(error)}. Look whether another process has taken the port, and begin all workers anew."
        ) from error
    # TensorFlow's server has taken SIGTERM for itself, as a notice of preemption, and Python would not hear of it.
    if (handler := signal.getsignal(signal.SIGTERM)) is not None:
        signal.signal(signal.SIGTERM, handler)
    _joined = Workers(channel, strategy)
    return _joined


def leave(failure: str = "") -> None:
    """Ends the connection with the others.

    Args:
        failure: Why this worker ends before the run does; the others are told, and end, too.
    """
    global _joined
    if _joined is not None:
        _joined.channel.close(failure)
        _joined = None


@contextmanager
def leaving() -> Iterator[None]:
    """Ends the connection with the others after the block, and tells them of an error that ends it.

    Raises:
        TrainingError: In place of another error, where a worker is gone.
    """
    try:
        yield
    except BaseException as error:
        # An error of TensorFlow's may be what the loss of another worker looks like from here.
        lost = lost_worker(0 if isinstance(error, FinetuneError | KeyboardInterrupt) else 5.0)
        leave(str(error) if isinstance(error, FinetuneError | KeyboardInterrupt) else reason(error))
        if lost and not isinstance(error, FinetuneError | KeyboardInterrupt):
            raise TrainingError(lost) from error
        raise
    leave()


def end_after_loss(sentence: str) -> None:
    """Lets a step that waits for a worker fail, and ends the process where that does not end it.

    Args:
        sentence: Which worker is gone.
    """
    keras_private.abort_collectives(sentence)

    def end() -> None:
        time.sleep(GRACE_SECONDS)
        print(printable_lines(f"error: All workers of a run train together. {sentence}"), file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=end, name="end after a loss", daemon=True).start()


def _watch_launcher(channel: Channel) -> None:
    """Ends this process when the one that has started it is gone, which then cannot end it itself."""
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _choose_gpu(cluster: Cluster) -> None:
    """Leaves each worker of a machine a GPU of its own."""
    gpus = tf.config.list_physical_devices("GPU")
    here = host_and_port(cluster.addresses[cluster.index])[0]
    before = [address for address in cluster.addresses[: cluster.index] if host_and_port(address)[0] == here]
    if len(gpus) > 1:
        tf.config.set_visible_devices([gpus[len(before) % len(gpus)]], "GPU")
