#!/usr/bin/env python3
"""Measures how fast images are read from disk, beside what Keras reads, and how much memory that takes.

Photographs are made first: smooth colours with noise, 320 x 240 pixels, as JPEG, in two class folders. Each system
shuffles them, resizes them to 224 x 224 and makes batches of 32, in a process of its own; processes take turns. A table
of small rows is read from memory for comparison, and the peak memory of an epoch is measured for more and more images.

    python scripts/bench_data.py                         # 1,000 images
    python scripts/bench_data.py --memory 1000 10000     # peak memory, too
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE, BATCH_SIZE = (224, 224), 32
SYSTEMS = ("finetune", "finetune, stretch", "image_dataset_from_directory", "decode alone")


def make_images(folder: Path, count: int) -> Path:
    """Writes JPEG files into `folder/<class>`; those that are there already stay."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    noise = random.integers(0, 40, (240, 320, 3), dtype=np.uint8)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:06}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            ramp = np.linspace(0, 150 + number % 60, 320, dtype=np.uint8)[:, np.newaxis]
            Image.fromarray(np.roll(noise, number, axis=1) + ramp).save(path, quality=85)
    return folder


def read(system: str, folder: Path, count: int) -> dict[str, float]:
    """Reads `count` images once after a warm-up, in this process; returns images per second and peak memory in MB."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import numpy as np
    import tensorflow as tf

    from finetune.data.batches import training_batches
    from finetune.data.images import find_images, image_rows

    if system == "image_dataset_from_directory":
        batches: Any = keras.utils.image_dataset_from_directory(
            folder, image_size=SIZE, batch_size=BATCH_SIZE, seed=0, verbose=False
        )
    else:
        files = find_images(folder)
        if system == "decode alone":
            paths = tf.data.Dataset.from_tensor_slices([str(file.path) for file in files])
            decoded = paths.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.data.AUTOTUNE)
            batches = decoded.map(lambda image: image[:224, :224]).batch(BATCH_SIZE)
        else:
            resize = "stretch" if "stretch" in system else "pad"
            rows = image_rows([file.path for file in files], size=SIZE, resize=resize)
            batches = training_batches(rows, np.zeros(len(rows)), batch_size=BATCH_SIZE)
    steps = -(-count // BATCH_SIZE)
    iterator = iter(batches.repeat())
    for _ in range(3):  # starts the threads
        next(iterator)
    begun = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": steps * BATCH_SIZE / seconds, "peak_mb": peak}


def in_a_process(system: str, folder: Path, count: int) -> dict[str, float]:
    """Runs `read` in a process of its own."""
    command = [sys.executable, __file__, "--system", system, "--folder", str(folder), "--images", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="numbers of images to measure the memory of")
    parser.add_argument("--folder", type=Path, help="where the images are kept (default: a temporary folder)")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.system:
        print(json.dumps(read(options.system, options.folder, options.images)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        folder = make_images(root / str(options.images), options.images)
        rounds = [
            {system: in_a_process(system, folder, options.images) for system in SYSTEMS} for _ in range(options.rounds)
        ]
        reference = statistics.median(each["image_dataset_from_directory"]["images_per_second"] for each in rounds)
        print(f"| {options.images:,} JPEG files | images/s | ratio to Keras | peak memory, MB |\n|---|--:|--:|--:|")
        for system in SYSTEMS:
            speed = statistics.median(each[system]["images_per_second"] for each in rounds)
            peak = max(each[system]["peak_mb"] for each in rounds)
            print(f"| {system} | {speed:,.0f} | {speed / reference:.2f} | {peak:,.0f} |")
        if options.memory:
            print("\n| images | peak memory of an epoch, MB |\n|--:|--:|")
        for count in options.memory:
            folder = make_images(root / str(count), count)
            print(f"| {count:,} | {in_a_process('finetune', folder, count)['peak_mb']:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
