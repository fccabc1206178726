"""Which devices train a model. What several of them compute is in `test_step_on_replicas.py`."""

import keras
import pytest
import tensorflow as tf

from finetune.distribution.strategy import (
    SINGLE,
    adopt,
    is_adopted,
    make_distribution,
    release,
    replicas_of,
    scope_of,
    strategy_of,
)
from finetune.errors import FinetuneError


@pytest.mark.parametrize("devices", ["auto", "single"])
def test_a_machine_with_one_device_trains_without_a_strategy(devices):
    distribution = make_distribution(devices)
    assert distribution is SINGLE
    with distribution.scope():
        assert not tf.distribute.has_strategy()


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            "mirrored",
            "`devices: mirrored` needs at least two devices of one machine. There is a single CPU. Write `devices: "
            "single` or `auto`; on a machine without GPUs, `cpu_devices: 2` divides the CPU to try it.",
        ),
        (
            "multi_worker",
            "`devices: multi_worker` needs several processes that know of each other. This is a single one. Begin them "
            "with `finetune launch`, or `finetune run` in each with `TF_CONFIG`.",
        ),
        (
            "gpu",
            "`devices` is one of `auto`, `single`, `mirrored`, `multi_worker`, `tpu`. Received `gpu`. Did you mean "
            "`tpu`?",
        ),
    ],
)
def test_devices_that_are_not_there_are_refused(devices, message):
    with pytest.raises(FinetuneError) as caught:
        make_distribution(devices)
    assert str(caught.value) == message


def test_a_tpu_that_is_not_there_is_refused():
    with pytest.raises(
        FinetuneError, match=r"`devices: tpu` needs a TPU. None can be reached here: .* Run this on a TPU"
    ):
        make_distribution("tpu")


def test_a_cpu_in_use_is_not_divided():
    tf.constant(0)
    with pytest.raises(FinetuneError) as caught:
        make_distribution("mirrored", cpu_devices=2)
    assert str(caught.value) == (
        "`cpu_devices` divides the CPU before the first operation of TensorFlow. Received 2, and TensorFlow has begun "
        "with 1. Begin a new process, as `finetune run` does."
    )


def test_a_model_of_a_single_device_stays_as_it_is():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    adopt(model)
    assert not is_adopted(model)
    assert replicas_of(model) == 1
    assert strategy_of(model) is tf.distribute.get_strategy()
    with scope_of(model):
        assert not tf.distribute.has_strategy()
    release(model)
    assert strategy_of(model) is model.distribute_strategy
