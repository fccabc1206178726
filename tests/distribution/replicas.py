"""A program that trains models on 1, 2 and 4 replicas and prints how far the results differ, a line of JSON a case.

TensorFlow divides the CPU into devices once in a process, so the tests run this in one of its own.
"""

import json
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import finetune
from finetune.data.examples import Examples
from finetune.distribution.strategy import adopt, make_distribution
from finetune.errors import TrainingError
from finetune.startup import divide_cpu
from finetune.training.precision_trial import try_precision

ROWS = 22  # in batches of 8, the last of which has 6: 2, 1, 2 and 1 on four replicas
BOTH = ("everything", "fewer_rows_than_replicas")  # on 2 replicas, too; each training takes a second
ALONE = ("going_on", "sent", "steps_of_ones_own")  # not compared with a single replica
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


class Penalty(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * tf.reduce_mean(x**2))
        return x


@case
def everything(strategy):
    """Regularization, weights of rows, clipping after the sum, accumulation, an average, BatchNorm, several steps a call."""
    norm = {"momentum": 0.5, "synchronized": True}
    regular = {"kernel_regularizer": keras.regularizers.L2(0.1)}
    return trained(
        strategy,
        lambda: dense(Penalty(), layers.BatchNormalization(**norm), layers.Dense(4, **regular)),
        optimizer={"global_clipnorm": 0.05, "gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5},
        compiled={"steps_per_execution": 2, "weighted_metrics": ["accuracy"]},
        sample_weight=np.linspace(0.1, 3, ROWS).astype("f4"),
    )


@case
def fewer_rows_than_replicas(strategy):
    return trained(strategy, lambda: dense(layers.BatchNormalization(synchronized=True)), data=data(19))


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
def moving_mean_of_local_batch_norm(strategy):
    """Behind the inputs, the mean of the replicas' means is that of the batch; their variances are not."""
    norm = layers.BatchNormalization
    results = trained(strategy, lambda: [keras.Input((5,)), norm(momentum=0.5), layers.Dense(3, activation="softmax")])
    return [results[2]]


@case
def half_precision(strategy):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return trained(
            strategy, dense, wrap=lambda inner: keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
        )
    finally:
        keras.config.set_dtype_policy("float32")


def two_groups(strategy: Any, *, frozen: bool = False, **compiled: Any) -> tuple[Any, list[Any]]:
    """Returns a model that is compiled in the scope of a strategy, and its groups `body` and `head`."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential(dense(layers.BatchNormalization(momentum=0.5, synchronized=True, name="norm")))
        selectors = [finetune.Selector("body", layers="0:2", frozen=frozen), finetune.Selector("head", rest=True)]
        body, head = groups = finetune.resolve_groups(model, selectors)
        finetune.freeze(model, groups)
        rules = {} if frozen else {"body": (keras.optimizers.SGD(0.05, momentum=0.9), body)}
        optimizer = finetune.GroupedOptimizer({**rules, "head": (keras.optimizers.Adam(0.01), head)})
        model.compile(optimizer, **{"loss": "sparse_categorical_crossentropy", **compiled})
    return model, list(groups)


def examples_of(x: np.ndarray, y: np.ndarray) -> Examples:
    return Examples(x_train=x, y_train=y, x_test=x, y_test=y)


def values_of(model: Any) -> list[np.ndarray]:
    return [np.asarray(v.numpy(), "f8") for v in (*model.weights, *model.optimizer.variables)]


@case
def phases_of_the_users_own_model(strategy):
    model, groups = two_groups(strategy)
    phases = [finetune.Phase(["head"], epochs=1), finetune.Phase("all", epochs=2, rates={"head": 0.005})]
    records = finetune.train_phases(model, groups, phases, *data(), batch_size=8, shuffle=False)
    assert all(record.frozen_unchanged and not record.keras_loop for record in records)
    assert model.distribute_strategy is strategy
    return values_of(model)


@case
def learning_rates(strategy):
    model, _ = two_groups(strategy)
    before = values_of(model) if model.optimizer.built else None
    sweep = finetune.lr_range_test(model, *data(), batch_size=8, steps=20, end=0.1)
    assert before is None or all(np.array_equal(a, b) for a, b in zip(before, values_of(model), strict=True))
    return [np.asarray(curve["losses"]) for curve in sweep.curves.values()]


@case
def a_trial_of_precision(strategy):
    model, _ = two_groups(strategy)
    adopt(model)
    trial = try_precision(model, examples_of(*data()), batch_size=8, most_steps=3)
    return [np.asarray([trial.first, trial.loss])]


@case
def steps_of_ones_own(strategy):
    """They are refused with the reason, since Keras would make them on the first replica alone."""

    class Own(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    with strategy.scope():
        model = Own(dense(), name="own")
        model.compile("sgd", "sparse_categorical_crossentropy")
    adopt(model)
    refusal = (
        "Several workers or replicas sum the gradients of each step in the fast loop, which cannot train `own`: `Own` "
        "has its own `train_step`. Train in a single process on a single device, or change that."
    )
    with pytest.raises(TrainingError, match=re.escape(refusal)):
        model.fit(*data(), verbose=0, callbacks=[finetune.FastLoop()])
    return [np.zeros(1)]


@case
def measured_groups(strategy):
    """Norms of the gradients of a batch, measured before its step, which leaves no trace."""
    model, groups = two_groups(strategy)
    adopt(model)
    monitor = finetune.GroupMonitor(groups, every_steps=2)
    model.fit(*data(), batch_size=8, shuffle=False, epochs=2, verbose=0, callbacks=[finetune.FastLoop(), monitor])
    assert monitor.said == [], monitor.said
    assert len(monitor.table) == 3
    assert np.isfinite(monitor.table[:, 3:]).all()
    return [monitor.table[:, 3:], *values_of(model)]


@case
def steps_left_out(strategy):
    """Rows that are no numbers, in the part of the last replica: no step, and no trace in moving statistics."""
    x, y = data(24)
    x[[7, 23], 0] = np.nan
    model, groups = two_groups(strategy)
    adopt(model)
    careful = finetune.NonFiniteGradients("skip", groups)
    options = {"batch_size": 8, "shuffle": False, "epochs": 2, "verbose": 0}
    losses = model.fit(x, y, callbacks=[finetune.FastLoop(), careful], **options).history["loss"]
    assert (careful.skipped, str(careful.first)[:16]) == (4, "epoch 1, step 1:"), (careful.skipped, careful.first)
    return [np.asarray(losses), *values_of(model)]


@case
def overflow_on_the_last_replica(strategy):
    """A loss that is scaled until the gradients of some rows are infinite: the step is left out on all replicas."""
    x, y = data(8)
    x[7] *= 1e31
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        inner = finetune.GroupedOptimizer([(keras.optimizers.SGD(0.05), model)])
        model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**30), "mae")
    adopt(model)
    before = [weight.numpy() for weight in model.weights]
    careful = finetune.NonFiniteGradients("skip")
    with suppress(TrainingError):  # no step of the epoch was made
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[finetune.FastLoop(), careful])
    assert careful.skipped == 1
    assert all(np.array_equal(a, weight.numpy()) for a, weight in zip(before, model.weights, strict=True))
    return [np.asarray(model.optimizer.dynamic_scale.numpy())]


@case
def a_loop_of_ones_own(strategy):
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            draw = np.random.default_rng(0)
            self.kernel = tf.Variable(draw.standard_normal((5, 3)).astype("f4"), name="kernel")
            self.regularization_losses = [lambda: 0.1 * tf.reduce_sum(self.kernel**2)]

        def __call__(self, x):
            return tf.nn.softmax(x @ self.kernel)

    x, y = data()
    values = []
    for make in (Module, lambda: two_groups(strategy)[0]):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            module = make()
            optimizer = keras.optimizers.Adam(0.1)
        step = finetune.grouped_train_step(module, "sparse_categorical_crossentropy", optimizer)
        values += [np.asarray([float(step(x[n:], y[n:])) for n in (0, 7, 19, 3)])]
        values += [np.asarray(v.numpy()) for v in module.variables]
    return values


@case
def going_on(strategy):
    """Differences between a training that was broken off and goes on, and one that was left alone: no bit."""

    class BreakOff(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1 and int(self.model.optimizer.iterations.numpy()) > 3:
                raise KeyboardInterrupt

    results = []
    for breaks in (False, True):
        with TemporaryDirectory() as folder:
            for callbacks in ([BreakOff()], []) if breaks else ([],):
                model, groups = two_groups(strategy)
                checkpoint = finetune.Checkpoint(folder, every_steps=1)
                phases = [finetune.Phase(["head"], epochs=1), finetune.Phase("all", epochs=2)]
                options = {"batch_size": 8, "shuffle": False, "callbacks": [checkpoint, *callbacks]}
                with suppress(KeyboardInterrupt):
                    finetune.train_phases(model, groups, phases, *data(), **options)
            results.append(values_of(model))
    return [left_alone - went_on for left_alone, went_on in zip(*results, strict=True)]


@case
def sent(strategy):
    """How many numbers a step sums over the replicas, with a frozen body and without: those of the head are 27."""
    counts, sums = [], tf.distribute.ReplicaContext.all_reduce

    def count(self, operation, value, *options):
        counts[-1] += sum(int(np.prod(part.shape)) for part in tf.nest.flatten(value)) / self.num_replicas_in_sync
        return sums(self, operation, value, *options)

    for frozen in (True, False):
        model, _ = two_groups(strategy, frozen=frozen)
        adopt(model)
        counts.append(0)
        tf.distribute.ReplicaContext.all_reduce = count
        try:
            model.fit(*data(), batch_size=8, verbose=0, callbacks=[finetune.FastLoop()])
        finally:
            tf.distribute.ReplicaContext.all_reduce = sums
    return [np.asarray(counts)]


def main(names: list[str], *, is_sample: bool) -> None:
    divide_cpu(4)
    four = make_distribution("mirrored").strategy
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    for name in names or CASES:
        try:
            single = None if name in ALONE else CASES[name](tf.distribute.get_strategy())
            worst = {}
            for strategy in (two, four) if name in BOTH else (two,) if is_sample else (four,):
                several = CASES[name](strategy)
                single = [np.zeros_like(each) for each in several] if single is None else single
                assert [a.shape for a in single] == [b.shape for b in several]
                if name == "sent":
                    worst[strategy.num_replicas_in_sync] = several[0].tolist()
                    continue
                worst[strategy.num_replicas_in_sync] = max(
                    float(np.abs(a - b).max()) for a, b in zip(single, several, strict=True)
                )
            print(json.dumps({"case": name, "worst": worst}), flush=True)
        except Exception as error:  # the other cases are still of interest
            traceback.print_exc()
            print(json.dumps({"case": name, "error": f"{type(error).__name__}: {error}"[:2000]}), flush=True)


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--sample"], is_sample="--sample" in sys.argv)
