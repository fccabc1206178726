#!/usr/bin/env python3
"""Measures what a measured step of `finetune.GroupMonitor` costs, and the share of the time at the automatic interval.

Epochs with a measurement every few steps and epochs without take turns. `extra` is the median time of a measurement
beyond the step itself; `share` is that time over the steps of the interval that `train.log_every_steps: auto` takes.

    python scripts/bench_monitor.py
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from finetune import FastLoop, GroupedOptimizer, GroupMonitor, resolve_groups
from finetune.training.monitor_interval import automatic_interval

BATCH, EVERY = 32, 10


def dense() -> keras.Model:
    """A network whose step is little but the time to start it."""
    layers = keras.layers
    return keras.Sequential([keras.Input((16,)), layers.Dense(32, activation="relu"), layers.Dense(3)])


def small_cnn() -> keras.Model:
    """A network of the size of those in the tutorials."""
    layers = keras.layers
    parts = [layers.Conv2D(16, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D()]
    parts += [layers.Conv2D(32, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    return keras.Sequential([keras.Input((28, 28, 1)), *parts])


def mobilenet() -> keras.Model:
    """A deep network."""
    return keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=3, alpha=0.35, classifier_activation=None)


WORKLOADS = {"dense": (dense, 16, 400), "small_cnn": (small_cnn, 1, 100), "mobilenet": (mobilenet, 1, 10)}


def measure(name: str, rounds: int = 5) -> tuple[float, float, int]:
    """Returns the seconds of a step and of a measurement beyond it, and the automatic interval."""
    build, steps_per_call, steps = WORKLOADS[name]
    keras.utils.set_random_seed(0)
    model = build()
    groups = resolve_groups(model, by="layer")
    optimizer = GroupedOptimizer({group.name: (keras.optimizers.Adam(1e-3), group) for group in groups})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, steps_per_execution=steps_per_call)
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * steps, *model.input_shape[1:])).astype("float32")
    y = random.integers(0, 3, len(x))
    loop, monitor = FastLoop(), GroupMonitor(groups, every_steps=EVERY)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for measured in (True, False) * (rounds + 1):  # the first of each compiles
        begun = time.perf_counter()
        callbacks = [loop, monitor] if measured else [loop]
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        seconds[measured].append(time.perf_counter() - begun)
    pairs = zip(seconds[True][1:], seconds[False][1:], strict=True)
    extra = statistics.median(with_it - without for with_it, without in pairs) * EVERY / steps
    step = statistics.median(seconds[False][1:]) / steps
    return step, extra, automatic_interval(model, batch_size=BATCH, steps=10**6)


if __name__ == "__main__":
    print("workload    step (ms)  extra (ms)  interval  share")
    for workload in WORKLOADS:
        of_step, of_measurement, interval = measure(workload)
        share = of_measurement / (interval * of_step)
        print(f"{workload:10} {of_step * 1e3:10.2f} {of_measurement * 1e3:11.2f} {interval:9} {share:6.1%}")
