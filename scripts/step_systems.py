"""The ways to train that `bench_step.py` compares, as far as they run in this process: Keras' and ours.

A new one is a function that makes a model ready and returns its train function, and a line in `SYSTEMS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from step_workloads import Workload, parts

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.compiled_steps import FastFunction

TrainFunction = Callable[[Iterator[Any]], Any]
Adam = keras.optimizers.Adam


@dataclass(frozen=True)
class System:
    """A way to train.

    Attributes:
        prepare: Takes a model and a number of groups; returns what trains it on the next batch or batches.
        has_groups: Whether it is measured at every number of groups, or once.
        most_groups: Beyond which it is not measured.
        steps_per_call: Batches that one call of the train function takes.
        plain: Whether it is always trained whole and in float32.
        varied_only: Whether it is measured only where the baseline is trained otherwise.
        long_steps: Whether it is measured also where a step takes long.
        quick: Whether `--quick` measures it.
    """

    prepare: Callable[[keras.Model, int], TrainFunction]
    has_groups: bool = True
    most_groups: int | None = None
    steps_per_call: int = 1
    plain: bool = False
    varied_only: bool = False
    long_steps: bool = True
    quick: bool = False

    def groups(self, workload: Workload) -> tuple[int, ...]:
        """Returns the numbers of groups at which it is measured."""
        if (self.varied_only and not workload.varies) or (workload.has_long_steps and not self.long_steps):
            return ()
        wanted = workload.groups if self.has_groups else (1,)
        return tuple(n for n in wanted if self.most_groups is None or n <= self.most_groups)


def fitted(model: keras.Model, optimizer: keras.optimizers.Optimizer, steps: int = 1) -> TrainFunction:
    """Compiles a model; returns the function that `fit` calls."""
    model.compile(optimizer, loss="mse", jit_compile=False, steps_per_execution=steps)
    untyped: Any = model
    untyped.make_train_function()
    return untyped.train_function


def grouped(model: keras.Model, groups: int, fused: str = "auto") -> GroupedOptimizer:
    made = {f"g{i}": (Adam(1e-4 * 0.99**i), part) for i, part in enumerate(parts(model, groups))}
    return GroupedOptimizer(made, fused=fused)


def multi_optimizer(model: keras.Model, groups: int) -> TrainFunction:
    owner = {v.path: i for i, part in enumerate(parts(model, groups)) for v in part}
    made = [Adam(1e-4 * 0.99**i) for i in range(groups)]
    by_path = {path: made[i] for path, i in owner.items() if i < groups - 1}
    return fitted(model, keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(made[-1], by_path)))


def many_tapes(model: keras.Model, groups: int) -> TrainFunction:
    """What people write by hand: a tape and an optimizer for every group."""
    pairs = [(Adam(1e-4 * 0.99**i), part) for i, part in enumerate(parts(model, groups))]
    for optimizer, part in pairs:
        optimizer.build(part)
    loss: Any = keras.losses.get("mse")

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        gradients = []
        for _, part in pairs:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(y, model(x, training=True)))
            gradients.append(tape.gradient(value, [v.value for v in part]))
        for (optimizer, part), gradient in zip(pairs, gradients, strict=True):
            optimizer.apply(gradient, part)

    return lambda iterator: step(*next(iterator))


class NoUpdate(keras.optimizers.Optimizer):
    """The step without its update: what no optimizer can go below."""

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        # One operation that wants them all: where only an order depends on them, they are not computed.
        wanted = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads]
        tf.raw_ops.Assert(condition=self._iterations.value >= 0, data=wanted)


def own_loop(model: keras.Model, groups: int, steps: int, kernels: str = "exact") -> TrainFunction:
    """What `finetune.FastLoop` lets `fit` call."""
    fitted(model, grouped(model, groups), steps)
    made: list[FastFunction] = []

    def train(iterator: Iterator[Any]) -> Any:
        if not made:
            made.append(FastFunction(model, kernels=kernels))
        return made[0](iterator)

    return train


BASELINE = "Keras, one Adam"
SYSTEMS = {
    BASELINE: System(lambda model, groups: fitted(model, Adam(1e-4)), has_groups=False, plain=True, quick=True),
    "Keras, one Adam, likewise": System(
        lambda model, groups: fitted(model, Adam(1e-4)), has_groups=False, varied_only=True, quick=True
    ),
    "finetune": System(lambda model, groups: fitted(model, grouped(model, groups)), quick=True),
    "finetune, own loop": System(lambda model, groups: own_loop(model, groups, 1)),
    "finetune, native kernels": System(lambda model, groups: own_loop(model, groups, 1, "native")),
    "finetune, 4 steps per call": System(
        lambda model, groups: own_loop(model, groups, 4), steps_per_call=4, long_steps=False, quick=True
    ),
    "finetune, 16 steps per call": System(
        lambda model, groups: own_loop(model, groups, 16), steps_per_call=16, long_steps=False, quick=True
    ),
    "finetune, fused: off": System(lambda model, groups: fitted(model, grouped(model, groups, fused="off"))),
    "Keras MultiOptimizer": System(multi_optimizer),
    "a tape for each group": System(many_tapes, most_groups=10),  # more of them take minutes to compile
    "forward and backward alone": System(
        lambda model, groups: fitted(model, NoUpdate(1e-4)), has_groups=False, quick=True
    ),
}
