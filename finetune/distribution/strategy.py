"""On which devices a model is trained: one, several of this machine, several machines, or a TPU.

TensorFlow has the engine: a `tf.distribute.Strategy` holds a copy of every variable on each device, a *replica* of the
model, and sums gradients over them. Here a strategy is chosen and made, and noted at the model that is made under it.

Keras notes a strategy at a model, too, and then distributes `fit`, `evaluate` and `predict` by itself, with results
that are not those of a single device (`finetune.distribution.loss_means`), and not at all on several machines
(https://github.com/keras-team/keras/issues/20585). So the models of `adopt` are models of a single device for Keras;
their training function makes the steps on all replicas (`finetune.training.fast.replicated_steps`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.workers import workers
from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.startup import divide_cpu
from finetune.variables import tf_variable

_ATTRIBUTE = "_finetune_strategy"


@dataclass(frozen=True)
class Distribution:
    """The devices that train a model.

    Attributes:
        devices: `single`, `mirrored`, `multi_worker` or `tpu`.
        strategy: TensorFlow's strategy; `None` on a single device.
        replicas: Copies of the model, on all machines together.
        names: The devices of this machine, such as `GPU:0`; none where TensorFlow chooses the single device.
    """

    devices: str = "single"
    strategy: Any = None
    replicas: int = 1
    names: tuple[str, ...] = ()

    def scope(self) -> AbstractContextManager[Any]:
        """Returns a block in which variables are made on all devices; it is for nothing else."""
        return self.strategy.scope() if self.strategy else nullcontext()


SINGLE = Distribution()


def make_distribution(devices: str, *, cpu_devices: int | None = None) -> Distribution:
    """Finds the devices, and makes the strategy that trains on them.

    Args:
        devices: `auto`, `single`, `mirrored`, `multi_worker` or `tpu`. `auto` takes several machines where this
            process has joined other workers, else several GPUs, else a single device.
        cpu_devices: Into how many devices the CPU is divided, >= 2; `None` leaves it whole.

    Raises:
        FinetuneError: There are no such devices, or the runtime of TensorFlow has begun with other ones.
    """
    if cpu_devices:
        divide_cpu(cpu_devices)
    makers = {"mirrored": _mirrored, "multi_worker": _multi_worker, "tpu": _tpu}
    kind = _available() if devices == "auto" else devices
    if kind == "single":
        return SINGLE
    if kind not in makers:
        known = ("auto", "single", *makers)
        raise FinetuneError(f"`devices` is one of {quote(known)}. Received `{devices}`.{did_you_mean(devices, known)}")
    return makers[kind]()


def _available() -> str:
    """Returns what `auto` stands for here."""
    if workers():
        return "multi_worker"
    return "mirrored" if len(_local_devices()) > 1 else "single"


def _multi_worker() -> Distribution:
    together = workers()
    if together is None:
        raise FinetuneError(
            "`devices: multi_worker` needs several processes that know of each other. This is a single one. Begin them "
            "with `finetune launch`, or `finetune run` in each with `TF_CONFIG`."
        )
    # Their variables are ordinary ones: the sums are over processes (`finetune.distribution.workers`).
    return Distribution("multi_worker", None, len(together))


def _local_devices() -> tuple[str, ...]:
    """Returns the devices that hold a replica each: all GPUs, else the parts of a CPU that was divided."""
    gpus = tf.config.list_logical_devices("GPU")
    return tuple(device.name.removeprefix("/device:") for device in gpus or tf.config.list_logical_devices("CPU"))


def _mirrored() -> Distribution:
    names = _local_devices()
    if len(names) < 2:
        kind = names[0].partition(":")[0] if names else "device"
        raise FinetuneError(
            f"`devices: mirrored` needs at least two devices of one machine. There is a single {kind}. Write `devices: "
            "single` or `auto`; on a machine without GPUs, `cpu_devices: 2` divides the CPU to try it."
        )
    return Distribution("mirrored", _mirrored_strategy(names), len(names), names)


@cache  # a second strategy would break the collectives of the first
def _mirrored_strategy(names: tuple[str, ...]) -> tf.distribute.Strategy:
    # By default TensorFlow sums with NCCL, which only GPUs have.
    reduction = None if names[0].startswith("GPU") else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(list(names), reduction)


@cache
def _tpu() -> Distribution:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except Exception as error:
        raise FinetuneError(
            f"`devices: tpu` needs a TPU. None can be reached here: {reason(error)}. Run this on a TPU VM, or write "
            "`devices: auto`."
        ) from error
    return Distribution("tpu", strategy, strategy.num_replicas_in_sync)


def adopt(model: keras.Model) -> None:
    """Makes a model that was made under a strategy one of a single device for Keras; `strategy_of` still knows it."""
    strategy = strategy_of(model)
    if strategy.num_replicas_in_sync > 1:
        # `__dict__` and not an attribute: Keras would track it.
        model.__dict__[_ATTRIBUTE] = strategy
        keras_private.set_strategy(model, None)


def release(model: keras.Model) -> None:
    """Undoes `adopt`: Keras distributes the model by itself again."""
    if strategy := model.__dict__.pop(_ATTRIBUTE, None):
        keras_private.set_strategy(model, strategy)


@contextmanager
def adopted(model: keras.Model) -> Iterator[None]:
    """Makes a model of several replicas one of a single device for Keras, in the block: see `adopt`."""
    was = is_adopted(model)
    adopt(model)
    try:
        yield
    finally:
        if not was:
            release(model)


def is_adopted(model: Any) -> bool:
    """Whether Keras takes a model of several replicas for one of a single device: see `adopt`."""
    return _ATTRIBUTE in vars(model)


def strategy_of(model: Any) -> Any:
    """Returns the strategy whose replicas train a model; TensorFlow's default one for a model of a single device."""
    return vars(model).get(_ATTRIBUTE) or model.distribute_strategy


def strategy_of_variables(variables: Sequence[Any]) -> tf.distribute.Strategy | None:
    """Returns the strategy of several replicas under which variables were made; `None` on a single device."""
    held = map(tf_variable, variables)
    return next((v.distribute_strategy for v in held if isinstance(v, tf.distribute.DistributedValues)), None)


def scope_of(model: Any) -> AbstractContextManager[Any]:
    """Returns a block in which variables are made on all devices that train a model, such as those of its metrics."""
    return strategy_of(model).scope() if replicas_of(model) > 1 else nullcontext()


def replicas_of(model: Any) -> int:
    """Returns how many replicas train a model."""
    return strategy_of(model).num_replicas_in_sync
