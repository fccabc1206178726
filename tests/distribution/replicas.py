"""A program that trains models on 1, 2 and 4 replicas and prints how far the results differ, a line of JSON a case.

TensorFlow divides the CPU into devices once in a process, so the tests run this in one of its own.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import finetune
from finetune.distribution.strategy import adopt, make_distribution
from finetune.startup import divide_cpu

ROWS = 22  # in batches of 8, the last of which has 6: 2, 1, 2 and 1 on four replicas
CASES: dict[str, Callable[[Any], Any]] = {}


def case(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    CASES[function.__name__] = function
    return function


def data(rows: int = ROWS, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((rows, 5)).astype("f4"), generator.integers(0, classes, rows)


def trained(strategy: Any, parts: Callable[[], list[Any]], *, optimizer: dict[str, Any] | None = None, **settings: Any):
    """Trains two groups for 2 epochs; returns all weights and the history."""
    keras.utils.set_random_seed(3)
    compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **settings.pop("compiled", {})}
    x, y = settings.pop("data", data())
    with strategy.scope():
        model = keras.Sequential(parts())
        half = len(model.layers) // 2
        groups = {
            "body": (keras.optimizers.SGD(0.05, momentum=0.9), model.layers[:half]),
            "head": (settings.pop("head", keras.optimizers.Adam)(0.01), model.layers[half:]),
        }
        grouped = finetune.GroupedOptimizer(groups, **(optimizer or {}))
        wrap = settings.pop("wrap", lambda inner: inner)
        model.compile(wrap(grouped), **compiled)
    adopt(model)
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": (x, y), **settings}
    history = model.fit(x, y, callbacks=[loop := finetune.FastLoop()], **options).history
    assert loop.reason is None, loop.reason
    weights = [np.asarray(v.numpy(), "f8") for v in model.weights if "seed" not in v.path]
    slots = [np.asarray(v.numpy(), "f8") for v in grouped.variables]
    return [*weights, *slots, *(np.asarray(values) for values in history.values())]


def dense(*more: Any) -> list[Any]:
    return [keras.Input((5,)), layers.Dense(8, activation="tanh"), *more, layers.Dense(3, activation="softmax")]


@case
def everything(strategy):
    """Regularization, weights of rows, clipping after the sum, accumulation, an average, BatchNorm, several steps a call."""
    norm = {"momentum": 0.5, "synchronized": True}
    regular = {"kernel_regularizer": keras.regularizers.L2(0.1)}
    return trained(
        strategy,
        lambda: dense(layers.BatchNormalization(**norm), layers.Dense(4, **regular)),
        optimizer={"global_clipnorm": 0.05, "gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5},
        compiled={"steps_per_execution": 2, "weighted_metrics": ["accuracy"]},
        sample_weight=np.linspace(0.1, 3, ROWS).astype("f4"),
    )


@case
def fewer_rows_than_replicas(strategy):
    return trained(strategy, lambda: dense(layers.BatchNormalization(synchronized=True)), data=data(17))


@case
def masked_tokens(strategy):
    tokens = np.random.default_rng(1).integers(0, 4, (ROWS, 6))  # 0 is masked, of each row another number

    def parts():
        embedding = layers.Embedding(4, 5, mask_zero=True)
        return [keras.Input((6,), dtype="int32"), embedding, layers.Dense(4), layers.Dense(3, activation="softmax")]

    return trained(strategy, parts, data=(tokens, tokens % 3), optimizer={"merge_rows": True})


@case
def weighted_mean(strategy):
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
    return trained(strategy, dense, compiled={"loss": loss}, class_weight={0: 1.0, 1: 5.0, 2: 0.2})


@case
def half_precision(strategy):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return trained(
            strategy, dense, wrap=lambda inner: keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
        )
    finally:
        keras.config.set_dtype_policy("float32")


def main(names: list[str]) -> None:
    divide_cpu(4)
    four = make_distribution("mirrored").strategy
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    for name in names or CASES:
        try:
            single = CASES[name](tf.distribute.get_strategy())
            worst = {}
            for strategy in (two, four):
                several = CASES[name](strategy)
                assert [a.shape for a in single] == [b.shape for b in several]
                worst[strategy.num_replicas_in_sync] = max(
                    float(np.abs(a - b).max()) for a, b in zip(single, several, strict=True)
                )
            print(json.dumps({"case": name, "worst": worst}), flush=True)
        except Exception as error:  # the other cases are still of interest
            traceback.print_exc()
            print(json.dumps({"case": name, "error": f"{type(error).__name__}: {error}"[:2000]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
