#!/usr/bin/env python3
"""Measures cached features: the time of epochs with and without them, the time to compute them, and their size.

Three networks: one of MiniLM's size with random weights on sequences of 64 random tokens, the small CNN of
`recipes/digits.yaml` on its digits, and a ResNet-20 on random images. Epochs with and without the cache run in turns in
one process; each figure is the median over the rounds. The training step is that of Keras, with the tail of the network
in the place of the model; all steps of an epoch are one call.

    python scripts/bench_features.py --json features.json --markdown     # in about ten minutes on two cores
    python scripts/bench_features.py --workload cnn                      # the small CNN alone
"""

import argparse
import json
import os
import statistics
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
from bench_step import machine
from step_workloads import small_resnet

from finetune.data.batches import steps_per_epoch, training_batches
from finetune.examples.digits import small_cnn, uci_digits
from finetune.examples.minilm import classifier
from finetune.results.formatting import size_text
from finetune.training.features.cache import Features, cached_features
from finetune.training.features.cut import Cut, Front, NoCut, find_cut
from finetune.training.features.store import FeatureStore

TRANSFORMER_LAYERS = 6


@dataclass(frozen=True)
class Workload:
    """A network, its data, and its phases.

    Attributes:
        make: Makes the model.
        data: Makes inputs and targets.
        batch_size: Rows in a batch.
        cuts: What to measure: by name, the names of the layers that are trained.
        schedule: Gradual unfreezing: which of `cuts`, each for `epochs_per_phase`.
    """

    make: Callable[[], keras.Model]
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    batch_size: int
    cuts: dict[str, tuple[str, ...]]
    schedule: tuple[str, ...]
    epochs_per_phase: int


@dataclass(frozen=True)
class Figure:
    """The measurement of a network with some layers trained.

    Attributes:
        workload: Which network.
        trained: Which layers are trained.
        full_epoch_seconds: Time of an epoch of training everything.
        epoch_seconds: Time of an epoch without the cache.
        cached_epoch_seconds: Time of an epoch with the cache.
        faster: Time of an epoch without the cache divided by that of a cached epoch.
        faster_than_full: Time of an epoch of training everything divided by that of a cached epoch.
        building_seconds: Time to compute the features, compiling and checks included.
        payback_epochs: After how many epochs the cache has saved that time.
        forward_share: Time of a step without the cache divided by that of the frozen part's forward pass and a cached
            step.
        cache_bytes: Size of the features.
    """

    workload: str
    trained: str
    full_epoch_seconds: float
    epoch_seconds: float
    cached_epoch_seconds: float
    faster: float
    faster_than_full: float
    building_seconds: float
    payback_epochs: float
    forward_share: float
    cache_bytes: int


def transformer_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 256 sequences of 64 random tokens, and classes 0 and 1."""
    tokens = np.random.default_rng(0).integers(1, 30522, (256, 64))
    return tokens.astype("int32"), np.arange(256) % 2


def digits_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns the 100 training rows of `recipes/digits.yaml`."""
    examples = uci_digits(train_rows=100)
    return examples.x_train, examples.y_train


def images() -> tuple[np.ndarray, np.ndarray]:
    """Returns 128 random images of 32 x 32, and classes 0 to 9."""
    return np.random.default_rng(0).standard_normal((128, 32, 32, 3)).astype("float32"), np.arange(128) % 10


def resnet() -> keras.Model:
    """Returns a ResNet-20 whose last layer is called `head`."""
    network = small_resnet()[0]
    network.layers[-1].name = "head"
    return network


def layers_above(count: int) -> tuple[str, ...]:
    """Returns the names of the transformer's layers above the first `count`."""
    return (*(f"layer_{n}" for n in range(count, TRANSFORMER_LAYERS)), "head")


WORKLOADS = {
    "transformer": Workload(
        make=lambda: classifier(num_layers=TRANSFORMER_LAYERS),
        data=transformer_data,
        batch_size=16,
        cuts={
            "head": layers_above(6),
            "last layer and head": layers_above(5),
            "last two of six layers and head": layers_above(4),
        },
        schedule=("head", "last layer and head", "last two of six layers and head"),
        epochs_per_phase=5,
    ),
    "cnn": Workload(
        make=small_cnn,
        data=digits_data,
        batch_size=20,
        cuts={
            "head": ("head",),
            "conv3, bn3 and head": ("conv3", "bn3", "head"),
            "all but conv1, bn1": ("conv2", "bn2", "conv3", "bn3", "head"),
        },
        schedule=("head", "conv3, bn3 and head"),
        epochs_per_phase=10,
    ),
    "resnet": Workload(
        make=resnet, data=images, batch_size=32, cuts={"head": ("head",)}, schedule=("head",), epochs_per_phase=10
    ),
}


def seeded_model(workload: Workload) -> keras.Model:
    """Returns the model, with the same weights at every call."""
    keras.utils.set_random_seed(0)
    return workload.make()


def freeze_all_but(model: keras.Model, trained: Sequence[str]) -> None:
    """Freezes all layers but those named (none if no name is given), and compiles the model."""
    for layer in model.layers:
        layer.trainable = not trained or layer.name in trained
    model.compile(keras.optimizers.Adam(1e-4), loss_of(model), jit_compile=False)


def loss_of(model: keras.Model) -> keras.losses.Loss:
    """Returns the cross entropy that fits the last layer: of logits, or of probabilities."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=model.layers[-1].activation is keras.activations.linear
    )


def epoch_of(model: keras.Model, forward: Callable[..., Any], steps: int) -> Callable[[Any], Any]:
    """Returns an epoch of Keras' training steps as one compiled function.

    Args:
        model: A compiled model.
        forward: What computes the predictions: the model, or its tail on features.
        steps: How many steps the epoch has.
    """

    def step(batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            predicted = forward(x, training=True)
            loss: Any = model.compute_loss(x, y, predicted, training=True)
        weights = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    @tf.function
    def epoch(batches: Any) -> Any:
        loss = 0.0
        for _ in tf.range(steps):
            loss = step(next(batches))
        return loss

    return epoch


class Training:
    """A model in one phase, with the cache or without it, that trains epoch by epoch, each in one call."""

    def __init__(self, workload: Workload, model: keras.Model, features: Features | None, first_epoch: int = 0):
        x, y = workload.data()
        options: dict[str, Any] = {"batch_size": workload.batch_size, "first_epoch": first_epoch}
        batches = features.batches(y, **options) if features else training_batches(x, y, **options)
        steps = steps_per_epoch(len(y), workload.batch_size)
        model.optimizer.build(model.trainable_variables)
        self.batches, self.run = iter(batches), epoch_of(model, features.tail if features else model, steps)

    def epoch(self) -> float:
        """Trains an epoch; returns its seconds."""
        begun = time.perf_counter()
        self.run(self.batches).numpy()
        return time.perf_counter() - begun


def forward_passes(workload: Workload, cut: Cut) -> Callable[[], float]:
    """Returns a function that runs the frozen part alone for an epoch and returns the time."""
    x, y = workload.data()
    front = Front(cut, cut.computed)
    batches = iter(training_batches(x, y, batch_size=workload.batch_size))

    @tf.function
    def run(batches: Any) -> Any:
        total = 0.0
        for _ in tf.range(steps_per_epoch(len(y), workload.batch_size)):
            values, _ = front([next(batches)[0]], training=True)
            total += tf.add_n([tf.reduce_sum(tf.cast(value, tf.float32)) for value in values.values()])
        return total

    def epoch() -> float:
        begun = time.perf_counter()
        run(batches).numpy()
        return time.perf_counter() - begun

    return epoch


def measure(name: str, rounds: int) -> Iterator[Figure]:
    """Yields the figures of a network, for each of its cuts."""
    workload = WORKLOADS[name]
    everything = seeded_model(workload)
    freeze_all_but(everything, ())
    full = Training(workload, everything, None)
    full.epoch()
    for trained, layers in workload.cuts.items():
        model = seeded_model(workload)
        freeze_all_but(model, layers)
        cut = find_cut(model)
        features = cached_features(cut, workload.data()[0], batch_size=workload.batch_size)
        if isinstance(features, NoCut) or isinstance(cut, NoCut):
            raise SystemExit(f"{name}, {trained}: no features: {features}")
        plain, cached = Training(workload, model, None), Training(workload, model, features)
        forward = forward_passes(workload, cut)
        for run in (plain.epoch, cached.epoch, forward):
            run()  # compiles
        turns = [
            (full.epoch(), plain.epoch(), statistics.median(cached.epoch() for _ in range(3)), forward())
            for _ in range(rounds)
        ]
        everything_seconds, slow, fast = (statistics.median(column) for column in list(zip(*turns, strict=True))[:3])
        yield Figure(
            workload=name,
            trained=trained,
            full_epoch_seconds=everything_seconds,
            epoch_seconds=slow,
            cached_epoch_seconds=fast,
            faster=slow / fast,
            faster_than_full=everything_seconds / fast,
            building_seconds=features.seconds,
            payback_epochs=features.seconds / (slow - fast),
            forward_share=statistics.median(plain / (front + tail) for _, plain, tail, front in turns),
            cache_bytes=features.nbytes,
        )


def unfreezing_seconds(name: str, *, cached: bool) -> float:
    """Returns the seconds of a run that unfreezes gradually, compiling and computing features included."""
    workload = WORKLOADS[name]
    model, store = seeded_model(workload), FeatureStore()
    x, _ = workload.data()
    begun = time.perf_counter()
    cuts = []
    for phase in workload.schedule:
        freeze_all_but(model, workload.cuts[phase])
        cuts.append(find_cut(model))
    for number, phase in enumerate(workload.schedule):
        freeze_all_but(model, workload.cuts[phase])
        features = None
        if cached:
            computed = cached_features(
                cuts[number], x, batch_size=workload.batch_size, later=cuts[number + 1 :], store=store
            )
            features = computed if isinstance(computed, Features) else None
        training = Training(workload, model, features, number * workload.epochs_per_phase)
        for _ in range(workload.epochs_per_phase):
            training.epoch()
    return time.perf_counter() - begun


def table(figures: Sequence[Figure], totals: dict[str, dict[str, float]]) -> str:
    """Returns two Markdown tables: the figures, and the time of gradual unfreezing."""
    columns = ("network", "trained", "everything, s", "without, s", "cached, s", "faster", "than everything")
    columns += ("building, s", "paid back after", "to forward", "cache")
    rows = [f"| {' | '.join(columns)} |", f"|---|---{'|--:' * 9}|"]
    for f in figures:
        cells = [f.workload, f.trained, f"{f.full_epoch_seconds:.3g}", f"{f.epoch_seconds:.3g}"]
        cells += [f"{f.cached_epoch_seconds:.3g}", f"{f.faster:.3g}x", f"{f.faster_than_full:.3g}x"]
        cells += [f"{f.building_seconds:.3g}", f"{f.payback_epochs:.1f} epochs", f"{f.forward_share:.2f}"]
        rows.append(f"| {' | '.join([*cells, size_text(f.cache_bytes)])} |")
    rows += ["", "| network | gradual unfreezing | without, s | cached, s | ratio |", "|---|---|--:|--:|--:|"]
    for name, total in totals.items():
        plan = f"{', then '.join(WORKLOADS[name].schedule)}; {WORKLOADS[name].epochs_per_phase} epochs each"
        ratio = total["cached"] / total["plain"]
        rows.append(f"| {name} | {plan} | {total['plain']:.3g} | {total['cached']:.3g} | {ratio:.2f} |")
    return "\n".join([*rows, "", f"On {machine()}."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind (default %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    options = parser.parse_args(arguments)
    figures, totals = [], {}
    for name in options.workload or WORKLOADS:
        for figure in measure(name, options.rounds):
            figures.append(figure)
            print(figure, file=sys.stderr)
        totals[name] = {
            "plain": unfreezing_seconds(name, cached=False),
            "cached": unfreezing_seconds(name, cached=True),
        }
        print(name, totals[name], file=sys.stderr)
    if options.json:
        content = {"figures": [asdict(figure) for figure in figures], "gradual_unfreezing_seconds": totals}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.markdown or not options.json:
        print(table(figures, totals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
