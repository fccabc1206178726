#!/usr/bin/env python3
"""Times an LR range test of 100 steps against 100 training steps and other range tests; prints ratios.

Measured in turn, each on a fresh model, compiling included: 100 plain training steps of `fit`; `lr_range_test`; a Keras
callback that raises the rate and records the loss in `fit`. With fastai installed (in any environment: `--fastai
PYTHON`) its `lr_find` on the same network and batches is timed there. Warm figures are those of a second call on the
same model.

python scripts/bench_lr_range.py
python scripts/bench_lr_range.py --fastai path/to/another/python --rounds 5 --json FILE
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import finetune
from finetune.optimizers.grouped import GroupedOptimizer

STEPS, BATCH = 100, 32


def dense(layers: int, width: int) -> keras.Model:
    """Returns a stack of dense layers of one width, where small operations dominate."""
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(width, activation="relu", name=f"dense_{n}") for n in range(layers)]
    return compiled(keras.Sequential([keras.Input((width,)), *parts, keras.layers.Dense(10, name="head")]))


def convolutional() -> keras.Model:
    """Returns a small convolutional network, where arithmetic dominates."""
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Conv2D(32, 3, activation="relu", padding="same", name=f"conv_{n}") for n in range(4)]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, name="head")]
    return compiled(keras.Sequential([keras.Input((32, 32, 3)), *parts, *head]))


def compiled(model: keras.Model) -> keras.Model:
    """Compiles a model with two groups, the head at ten times the rate of the body."""
    body = [layer for layer in model.layers if layer.weights and layer.name != "head"]
    groups = {
        "body": (keras.optimizers.Adam(1e-5), body),
        "head": (keras.optimizers.Adam(1e-4), model.get_layer("head")),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(GroupedOptimizer(groups), loss=loss)
    return model


WORKLOADS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "30 dense layers of 64": (lambda: dense(30, 64), (64,)),
    "4 convolutions of 32 on 32x32": (convolutional, (32, 32, 3)),
}


class CallbackTest(keras.callbacks.Callback):
    """The range test that people write by hand: raises the rate before every batch and records its loss."""

    def on_train_begin(self, logs=None):
        self.rates, self.losses = iter(np.geomspace(1e-7, 1e-3, STEPS)), []

    def on_train_batch_begin(self, batch, logs=None):
        model: Any = self.model
        model.optimizer.learning_rate = next(self.rates)
        model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append((logs or {})["loss"])


def plain(model: keras.Model, data: tf.data.Dataset) -> None:
    """Trains 100 steps at a constant rate."""
    model.fit(data, steps_per_epoch=STEPS, verbose=0)


def callback(model: keras.Model, data: tf.data.Dataset) -> None:
    """Runs the range test of a callback, and puts the weights back."""
    weights = model.get_weights()
    model.fit(data, steps_per_epoch=STEPS, verbose=0, callbacks=[CallbackTest()])
    model.set_weights(weights)


def range_test(model: keras.Model, data: tf.data.Dataset) -> None:
    """Runs the range test of this package."""
    finetune.lr_range_test(model, data, start=1e-7, end=1e-3, stop_factor=1e9)  # no system may stop early


SYSTEMS = {"100 plain steps of fit": plain, "finetune.lr_range_test": range_test, "Keras callback": callback}

FASTAI = """
import sys, time, json, warnings
warnings.simplefilter("ignore")
import torch
from fastai.basics import *
from fastai.callback.schedule import *
from torch.utils.data import TensorDataset
torch.set_num_threads(2)
kind, rounds = sys.argv[1], int(sys.argv[2])
shape = (64,) if kind == "dense" else (3, 32, 32)
def network():
    if kind == "dense":
        parts = [m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())] + [nn.Linear(64, 10)]
    else:
        parts = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
        parts += [m for _ in range(3) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(*parts)
x, y = torch.randn(3200, *shape), torch.randint(0, 10, (3200,))
loaders = DataLoaders.from_dsets(TensorDataset(x, y), TensorDataset(x[:32], y[:32]), bs=32, num_workers=0)
times = []
for _ in range(rounds):
    learner = Learner(loaders, network(), loss_func=nn.CrossEntropyLoss())
    start = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.lr_find(start_lr=1e-7, end_lr=1e-3, num_it=100, stop_div=False, show_plot=False)
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def main() -> None:
    """Prints a table for each network, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fastai", help="a Python that has fastai")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    times = {}
    for name, workload in WORKLOADS.items():
        times[name] = measure(*workload, arguments.rounds)
        if arguments.fastai:
            times[name]["fastai lr_find"] = of_fastai(arguments.fastai, name, arguments.rounds)
        print_table(name, times[name])
    if not arguments.fastai:
        print("fastai was not timed: give a Python that has it with `--fastai`.")
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=2))


def measure(make: Callable[[], keras.Model], shape: tuple[int, ...], rounds: int) -> dict[str, dict]:
    """Times all systems in turn, round by round, so that a busy moment slows all of them.

    Args:
        make: Makes the model.
        shape: Shape of one of its inputs.
        rounds: How often each system is timed.

    Returns:
        For each system its seconds, `cold` on a fresh model and `warm` when called again.
    """
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(BATCH * STEPS, *shape)).astype("float32"), generator.integers(0, 10, BATCH * STEPS)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).repeat()
    times: dict[str, dict] = {name: {"cold": [], "warm": []} for name in SYSTEMS}
    for _ in range(rounds):
        for name, system in SYSTEMS.items():
            model = make()
            for temperature in ("cold", "warm"):
                start = time.perf_counter()
                system(model, data)
                times[name][temperature].append(time.perf_counter() - start)
    return times


def of_fastai(python: str, workload: str, rounds: int) -> dict[str, list[float]]:
    """Times fastai's `lr_find` in another Python."""
    command = [python, "-c", FASTAI, "dense" if "dense" in workload else "convolutional", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} could not run fastai: {done.stderr.strip().splitlines()[-1]}")
    times = json.loads(done.stdout.strip().splitlines()[-1])
    return {"cold": times, "warm": times[1:] or times}


def print_table(name: str, systems: dict[str, dict]) -> None:
    """Prints the medians of all systems, and their ratio to the plain steps."""
    print(f"\n{name}\n| | with compiling | ratio | again | ratio |\n| --- | --- | --- | --- | --- |")
    base = {key: statistics.median(systems["100 plain steps of fit"][key]) for key in ("cold", "warm")}
    for system, times in systems.items():
        cold, warm = (statistics.median(times[key]) for key in ("cold", "warm"))
        print(f"| {system} | {cold:.2f} s | {cold / base['cold']:.2f}x | {warm:.2f} s | {warm / base['warm']:.2f}x |")


if __name__ == "__main__":
    main()
