#!/usr/bin/env python3
"""Measures what one training step costs, relative to Keras with one Adam for everything, at 1, 10 and 100 layer groups.

All systems of a workload run in turns in one process, a block of steps each, with the same data; `ratio` is the median
over the rounds of a system's time by that of Keras in the same round, `spread` the middle half of these ratios. A step
is one call of the function that `fit` calls. Start-up (processor time of a whole process up to its fifth step) and peak
memory are measured in a process for each system.

    python scripts/bench_step.py --quick --json quick.json     # small layers only, in about two minutes
    python scripts/bench_step.py --json all.json --markdown    # everything, in about fifteen; prints the table, too
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from finetune.optimizers.grouped import GroupedOptimizer

Adam = keras.optimizers.Adam


@dataclass(frozen=True)
class Workload:
    """A network with its data, and how often it is measured.

    Attributes:
        make: Makes the model and one batch `(x, y)`.
        loss: Its loss.
        groups: Numbers of layer groups to measure.
        block: Steps in a block.
    """

    make: Callable[[], tuple[keras.Model, tuple[np.ndarray, np.ndarray]]]
    loss: str
    groups: tuple[int, ...]
    block: int


@dataclass(frozen=True)
class Figure:
    """One measurement, as the JSON file holds it; `ratio` and `spread` are relative to Keras with one Adam.

    `operations` is the size of the step's graph, which is the same on every machine.
    """

    workload: str
    system: str
    groups: int
    ratio: float | None
    spread: tuple[float, float] | None
    startup_cpu_seconds: float | None
    peak_rss_mb: float | None
    operations: int | None = None


# -- Workloads --------------------------------------------------------------------------------------------------------


def small_layers() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """100 dense layers of 64, batch 32: 200 small variables, bound by the number of operations."""
    hidden = [layers.Dense(64, activation="relu") for _ in range(99)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(64)])
    return model, (normal(32, 64), normal(32, 64))


def small_resnet() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """A ResNet-20 for images of 32 by 32, batch 32: bound by its convolutions."""
    inputs = keras.Input((32, 32, 3))
    x = unit(inputs, 16, 1)
    for filters in (16, 32, 64):
        for block in range(3):
            strides = 2 if filters > 16 and block == 0 else 1
            kept = layers.Conv2D(filters, 1, strides)(x) if strides > 1 else x
            x = layers.Activation("relu")(layers.Add()([kept, unit(unit(x, filters, strides), filters, 1)]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    return model, (normal(32, 32, 32, 3), normal(32, 10))


def unit(x: Any, filters: int, strides: int) -> Any:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def transformer() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """Of the size of MiniLM-L6, random weights, sequences of 64, batch 16: 22.7 M parameters."""
    inputs = keras.Input((64,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(30522, 384)(inputs))
    for _ in range(6):
        attended = layers.MultiHeadAttention(12, 32)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        wide = layers.Dense(384)(layers.Dense(1536, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, wide]))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    return model, (np.random.default_rng(0).integers(0, 30522, (16, 64)), normal(16, 1))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


WORKLOADS = {
    "small layers": Workload(small_layers, "mse", (1, 10, 100), 20),
    "resnet": Workload(small_resnet, "mse", (1, 8), 4),
    "transformer": Workload(transformer, "mse", (1, 8), 2),
}


# -- Systems ----------------------------------------------------------------------------------------------------------


def one_adam(model: keras.Model, groups: int) -> None:
    model.compile(Adam(1e-4), loss=model.loss_name, jit_compile=False)


def grouped(model: keras.Model, groups: int, fused: str = "auto") -> None:
    made = {f"g{i}": (Adam(1e-4 * 0.99**i), part) for i, part in enumerate(parts(model, groups))}
    model.compile(GroupedOptimizer(made, fused=fused), loss=model.loss_name, jit_compile=False)


def not_fused(model: keras.Model, groups: int) -> None:
    grouped(model, groups, fused="off")


def multi_optimizer(model: keras.Model, groups: int) -> None:
    owner = {v.path: i for i, part in enumerate(parts(model, groups)) for v in part}
    made = [Adam(1e-4 * 0.99**i) for i in range(groups)]
    by_path = {path: made[i] for path, i in owner.items() if i < groups - 1}
    mapped = keras.optimizers.OptimizerMap(made[-1], by_path)
    model.compile(keras.optimizers.MultiOptimizer(mapped), loss=model.loss_name, jit_compile=False)


def many_tapes(model: keras.Model, groups: int) -> None:
    """What people write by hand: a tape and an optimizer for every group."""
    pairs = [(Adam(1e-4 * 0.99**i), part) for i, part in enumerate(parts(model, groups))]
    for optimizer, part in pairs:
        optimizer.build(part)
    loss: Any = keras.losses.get(model.loss_name)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        gradients = []
        for _, part in pairs:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(y, model(x, training=True)))
            gradients.append(tape.gradient(value, [v.value for v in part]))
        for (optimizer, part), gradient in zip(pairs, gradients, strict=True):
            optimizer.apply(gradient, part)

    untyped: Any = model
    untyped.train_function = lambda iterator: step(*next(iterator))


def forward_and_backward(model: keras.Model, groups: int) -> None:
    """The step without its update: what no optimizer can go below."""

    class NoUpdate(keras.optimizers.Optimizer):
        def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
            with tf.control_dependencies([tf.convert_to_tensor(g) for g in grads]):
                self._iterations.assign_add(0)

    model.compile(NoUpdate(1e-4), loss=model.loss_name, jit_compile=False)


def parts(model: keras.Model, groups: int) -> list[list[keras.Variable]]:
    variables = model.trainable_variables
    held = [layer for layer in model.layers if layer.trainable_variables]
    cuts = np.array_split(np.arange(len(held)), groups)
    found = [[v for i in cut for v in held[i].trainable_variables] for cut in cuts]
    assert sum(map(len, found)) == len(variables)
    return found


BASELINE = "Keras, one Adam"
SYSTEMS: dict[str, Callable[[keras.Model, int], None]] = {
    BASELINE: one_adam,
    "finetune": grouped,
    "finetune, fused: off": not_fused,
    "Keras MultiOptimizer": multi_optimizer,
    "a tape for each group": many_tapes,
    "forward and backward alone": forward_and_backward,
}
UNGROUPED = (BASELINE, "forward and backward alone")
QUICK = (BASELINE, "finetune", "forward and backward alone")
MOST_TAPES = 10  # more of them take minutes to compile


def cases(workload: Workload, systems: Sequence[str]) -> list[tuple[str, int]]:
    found = []
    for system in systems:
        wanted = (1,) if system in UNGROUPED else workload.groups
        found += [(system, n) for n in wanted if "tape" not in system or n <= MOST_TAPES]
    return found


# -- Measuring --------------------------------------------------------------------------------------------------------


def start(workload: Workload, system: str, groups: int) -> tuple[keras.Model, Sequence[np.ndarray], Callable[[], None]]:
    """Builds and warms up a system; returns its model, its batch and its step."""
    keras.utils.set_random_seed(0)
    model, batch = workload.make()
    model.loss_name = workload.loss
    SYSTEMS[system](model, groups)
    if model.train_function is None:
        model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2))
    step: Any = model.train_function
    for _ in range(5):
        step(batches)
    return model, batch, lambda: step(batches)


def in_turns(workload: Workload, wanted: Sequence[tuple[str, int]], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Returns the ratio of every case to the baseline, round by round."""
    steps = {case: start(workload, *case)[2] for case in wanted}
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in wanted}
    for _ in range(rounds):
        for case, step in steps.items():
            begun = time.perf_counter()
            for _ in range(workload.block):
                step()
            seconds[case].append(time.perf_counter() - begun)
    base = seconds[BASELINE, 1]
    return {case: [a / b for a, b in zip(own, base, strict=True)] for case, own in seconds.items()}


def in_its_own_process(workload: str, system: str, groups: int) -> tuple[float, float, int | None]:
    """Returns processor seconds up to the fifth step, peak memory in MB, and operations of the step."""
    command = [sys.executable, __file__, "--alone", workload, system, str(groups)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory, operations = map(float, done.stdout.split()[-3:])
    return round(seconds, 2), round(memory, 1), int(operations) or None


def alone(workload: str, system: str, groups: int) -> None:
    model, batch, _ = start(WORKLOADS[workload], system, groups)
    seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, memory, count_operations(model, batch))


def count_operations(model: keras.Model, batch: Sequence[np.ndarray]) -> int:
    """Returns the operations of a compiled step; 0 if the step is not the model's own."""
    if not model.compiled:
        return 0
    step = tf.function(lambda *batch: model.train_step(batch))
    return len(step.get_concrete_function(*map(tf.constant, batch)).graph.get_operations())


def measure(name: str, systems: Sequence[str], rounds: int, *, processes: bool = True) -> Iterator[Figure]:
    wanted = cases(WORKLOADS[name], systems)
    apart = {case: in_its_own_process(name, *case) if processes else (None, None, None) for case in wanted}
    for case, ratios in in_turns(WORKLOADS[name], wanted, rounds).items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        yield Figure(name, *case, round(middle, 3), (round(low, 3), round(high, 3)), *apart[case])


def table(figures: Sequence[Figure]) -> str:
    columns = ("workload", "system", "groups", "step", "middle half", "start-up, s", "memory, MB", "operations")
    rows = [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for f in figures:
        low, high = f.spread or (0, 0)
        apart = f"{f.startup_cpu_seconds or 0:.1f} | {f.peak_rss_mb or 0:.0f} | {f.operations or ''}"
        rows.append(f"| {f.workload} | {f.system} | {f.groups} | {f.ratio:.2f}x | {low:.2f}-{high:.2f} | {apart} |")
    return "\n".join([*rows, "", f"On {machine()}."])


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}, TensorFlow {tf.__version__}, Keras {keras.__version__}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers only, finetune against Keras")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only these")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of blocks, >= 2 (default %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    parser.add_argument("--steps-only", action="store_true", help="neither start-up nor memory")
    parser.add_argument("--alone", nargs=3, metavar=("WORKLOAD", "SYSTEM", "GROUPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds is at least 2")
    if options.alone:
        workload, system, groups = options.alone
        alone(workload, system, int(groups))
        return 0
    names = options.workload or (["small layers"] if options.quick else list(WORKLOADS))
    figures = []
    for name in names:
        systems = QUICK if options.quick else tuple(SYSTEMS)
        for figure in measure(name, systems, options.rounds, processes=not options.steps_only):
            figures.append(figure)
            print(figure, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    if options.markdown or not options.json:
        print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
