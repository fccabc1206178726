#!/usr/bin/env python3
"""Measures `finetune predict`: rows in a second, and peak memory by the number of rows.

Images of 96x96 pixels as JPEG files, and rows of a table with numbers and categories. The image network is a small
MobileNetV2, the peer its own `predict` on the best plain `tf.data` pipeline of the same files: read, decode, batch,
prefetch, all in parallel. Both take turns in a process; `ratio` is the median over the rounds of our rows in a second
by those of the peer. Peak memory is that of a process of its own for each number of rows.

    python scripts/bench_predict.py
    python scripts/bench_predict.py --rows 1000 10000 --rounds 3
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from bench_step import machine
from peers.serving import peak_memory
from PIL import Image

import finetune
from finetune.inference.fine_tuned import FineTuned, load

SIZE, BATCH = 96, 32
IMAGES = """
model: {keras_file: net.keras, head: {classes: auto}}
data: {images: photos/}
groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 0.001}]
train: {epochs: 1, batch_size: 16}
"""
TABLE = """
model: {builder: "finetune.examples.networks:mlp", head: {classes: auto}}
data: {table: train.csv, inputs: [a, b, c, d], target: kind}
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.001}]
train: {epochs: 1, batch_size: 16}
"""


def make_images(folder: Path, count: int) -> None:
    """Writes JPEG files of noise that is smooth, which decodes as photos do."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg")


def make_table(path: Path, count: int) -> None:
    """Writes a table of three numbers, a category and a class."""
    random = np.random.default_rng(0)
    values = random.normal(size=(count, 3)).round(4).tolist()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "d", "kind"])
        writer.writerows([*row, "xyz"[n % 3], "pq"[n % 2]] for n, row in enumerate(values))


def make_runs(folder: Path) -> None:
    """Trains both networks for a moment."""
    for name in ("cat", "dog"):
        make_images(folder / "photos" / name, 8)
    inputs = keras.Input((SIZE, SIZE, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    body = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
    keras.Model(inputs, body(scaled)).save(folder / "net.keras")
    make_table(folder / "train.csv", 64)
    for name, recipe in (("images", IMAGES), ("table", TABLE)):
        (folder / f"{name}.yaml").write_text(recipe)
        finetune.run(folder / f"{name}.yaml", folder / name)


def ours(fine_tuned: FineTuned, place: Path) -> float:
    """Returns rows in a second."""
    begun = time.perf_counter()
    count = sum(1 for _ in fine_tuned.predictions(fine_tuned.read([place])))
    return count / (time.perf_counter() - begun)


def plain(model: Any, folder: Path) -> float:
    """Returns rows in a second of `predict` on a plain pipeline."""

    def decode(path: Any) -> Any:
        return tf.cast(tf.ensure_shape(tf.io.decode_jpeg(tf.io.read_file(path), 3), (SIZE, SIZE, 3)), tf.float32)

    begun = time.perf_counter()
    paths = sorted(map(str, folder.iterdir()))
    rows = tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE).batch(BATCH).prefetch(2)
    model.predict(rows, verbose=0)
    return len(paths) / (time.perf_counter() - begun)


def print_speed(folder: Path, images: Path, table: Path, rounds: int) -> None:
    """Prints rows in a second of both, in turns; the first round, in which functions are traced, does not count."""
    fine_tuned = load(folder / "images")
    of_table = load(folder / "table")
    figures = [(ours(fine_tuned, images), plain(fine_tuned.model, images)) for _ in range(rounds + 1)][1:]
    tables = [ours(of_table, table) for _ in range(rounds + 1)][1:]
    ratio = statistics.median(own / peer for own, peer in figures)
    own, peer = (statistics.median(each) for each in zip(*figures, strict=True))
    print(f"images: {own:,.0f} rows/s, plain `predict` {peer:,.0f}, ratio {ratio:.2f}")
    print(f"table: {statistics.median(tables):,.0f} rows/s")


def print_memory(folder: Path, images: Sequence[Path], tables: Sequence[Path]) -> None:
    """Prints the peak memory of a process for each number of rows."""
    for name, places in (("images", images), ("table", tables)):
        for place in places:
            command = [sys.executable, __file__, "--one", str(folder / name), str(place)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{name}, {place.stem} rows: peak memory {float(done.stdout.split()[-1]):,.0f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, nargs=2, metavar=("RUN", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        ours(load(options.one[0]), options.one[1])
        print(peak_memory())
        return 0
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_runs(folder)
        images, tables = [], []
        for count in options.rows:
            make_images(folder / "many" / str(count), count)
            make_table(folder / f"{count}.csv", count)
            images.append(folder / "many" / str(count))
            tables.append(folder / f"{count}.csv")
        print_speed(folder, images[0], tables[-1], options.rounds)
        print_memory(folder, images, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
