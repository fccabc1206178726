"""Which devices train a model. What several of them compute is in `test_step_on_replicas.py`."""

import json

import keras
import pytest
import tensorflow as tf

from finetune.distribution.strategy import (
    SINGLE,
    adopt,
    cluster_of_environment,
    is_adopted,
    make_distribution,
    release,
    replicas_of,
    scope_of,
    strategy_of,
)
from finetune.errors import FinetuneError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("TF_CONFIG", "SM_HOSTS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("devices", ["auto", "single"])
def test_a_machine_with_one_device_trains_without_a_strategy(devices):
    distribution = make_distribution(devices)
    assert distribution is SINGLE
    with distribution.scope():
        assert not tf.distribute.has_strategy()


def config(**cluster):
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("TF_CONFIG", config(worker=["a:1", "b:1"]), "tf_config"),
        ("TF_CONFIG", config(chief=["a:1"], worker=["b:1"]), "tf_config"),
        ("TF_CONFIG", config(worker=["a:1"]), None),
        ("TF_CONFIG", config(worker=["a:1"], ps=["b:1"], evaluator=["c:1"]), None),
        ("TF_CONFIG", "{}", None),
        ("TF_CONFIG", "", None),
        ("TF_CONFIG", "not JSON", "tf_config"),  # whose reader says what is wrong
        ("TF_CONFIG", "[]", "tf_config"),
        ("SLURM_STEP_NUM_TASKS", "4", "slurm"),
        ("SLURM_STEP_NUM_TASKS", "1", None),
        ("SM_HOSTS", '["a", "b"]', "sagemaker"),
        ("SM_HOSTS", '["a"]', None),
    ],
)
def test_several_machines_are_found_in_the_environment(monkeypatch, name, value, where):
    monkeypatch.setenv(name, value)
    assert cluster_of_environment() == where


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
            "`devices: multi_worker` needs several processes that know of each other. Neither `TF_CONFIG` nor SLURM or "
            "SageMaker names any here. Begin them with `finetune launch`, or set `TF_CONFIG` in each.",
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
