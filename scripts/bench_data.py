#!/usr/bin/env python3
"""Measures how fast images are read from disk, beside other systems, and how much memory that takes.

Photographs are made first: smooth colours with noise, 320 x 240 pixels or as `--pixels` says, as JPEG, in two class
folders; beyond a thousand they are further names of the first thousand files. Each system shuffles them, resizes them
to 224 x 224 and makes batches of 32, in a process of its own; processes take turns. Images per second of processor time
stand beside those by the clock, which other work on the machine changes. The second and third epoch are measured.
`augment` turns each image and flips half of them, by the same layers of Keras.
Start-up and peak memory are measured for more and more images.

Grain and PyTorch's DataLoader, which decode with Pillow, are measured by the Python of an environment that has them:
`pip install grain torch pillow numpy`.

    python scripts/bench_data.py                                        # 1,000 images
    python scripts/bench_data.py --pixels 500 375                       # of another size: that of many in ImageNet
    python scripts/bench_data.py --peers /tmp/peers/bin/python          # beside Grain and PyTorch
    python scripts/bench_data.py --rounds 0 --memory 1000 100000 1000000 --read 3000  # start and memory alone
"""

import argparse
import importlib
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
KERAS, KERAS_PAD, KERAS_AUGMENT = (f"image_dataset_from_directory{kind}" for kind in ("", ", pad", ", augment"))
TENSORFLOW = (
    *("finetune", "keep: memory", "keep: disk", "finetune, stretch", "finetune, stretch, augment"),
    *(KERAS_PAD, KERAS, KERAS_AUGMENT, "tf.data", "decode"),
)
PEERS = ("Grain", "PyTorch DataLoader")
DIFFERENT = 1000  # images; others are further names of them


def make_images(folder: Path, count: int, width: int = 320, height: int = 240) -> Path:
    """Writes JPEG files into `folder/<class>`; those that are there already stay."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    noise = random.integers(0, 40, (height, width, 3), dtype=np.uint8)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:06}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= DIFFERENT:
            os.link(folder / "ab"[number % 2] / f"{number % DIFFERENT:06}.jpg", path)
            continue
        ramp = np.linspace(0, 150 + number % 60, width, dtype=np.uint8)[:, np.newaxis]
        Image.fromarray(np.roll(noise, number, axis=1) + ramp).save(path, quality=85)
    return folder


def tensorflow_batches(system: str, folder: Path) -> Any:
    """Returns the batches of a system that reads with TensorFlow; those of finetune are without end."""
    import keras
    import numpy as np
    import tensorflow as tf

    from finetune.data.augmentation import Augmentation
    from finetune.data.batches import training_batches
    from finetune.data.images import find_images, image_rows
    from finetune.data.kept_rows import form_of, kept_in_memory, kept_on_disk

    layers = []
    if "augment" in system:
        layers = [keras.layers.RandomFlip("horizontal", seed=0), keras.layers.RandomRotation(0.1, seed=0)]
    if system in (KERAS, KERAS_PAD, KERAS_AUGMENT):
        data: Any = keras.utils.image_dataset_from_directory(
            folder,
            image_size=SIZE,
            batch_size=BATCH_SIZE,
            seed=0,
            verbose=False,
            pad_to_aspect_ratio=system == KERAS_PAD,
        )
        if layers:
            augment = keras.Sequential(layers)
            data = data.map(lambda x, y: (augment(x, training=True), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        return data
    paths = find_images(folder).paths
    if system in ("decode", "tf.data"):
        names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths]).shuffle(len(paths), seed=0)

        def image(name: Any) -> Any:
            decoded: Any = tf.io.decode_jpeg(tf.io.read_file(name), channels=3)
            return decoded[:224, :224] if system == "decode" else tf.image.resize(decoded, SIZE)

        return names.map(image, tf.data.AUTOTUNE).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
    rows = image_rows(paths, size=SIZE, resize="stretch" if "stretch" in system else "pad")
    if system.startswith("keep"):
        form = form_of(rows)
        assert form
        rows = kept_in_memory(rows, form) if "memory" in system else kept_on_disk(rows, form)
    augmentation = Augmentation(layers, [], leaf=0, dtype=tf.float32) if layers else None
    return training_batches(rows, np.zeros(len(rows)), batch_size=BATCH_SIZE, augmentation=augmentation)


def peer_batches(system: str, folder: Path) -> Any:
    """Returns an endless iterator over the batches of Grain or PyTorch, with a worker for each processor core."""
    import numpy as np
    from PIL import Image

    paths = sorted(folder.glob("*/*.jpg"))

    def image(path: Path) -> Any:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR), np.float32)

    if system == "Grain":
        import grain  # pyright: ignore[reportMissingImports] - of another environment

        data = grain.MapDataset.source(paths).shuffle(seed=0).map(image).repeat()
        threads = grain.ReadOptions(num_threads=os.cpu_count() or 1)
        return iter(data.to_iter_dataset(threads).batch(BATCH_SIZE))
    import torch  # pyright: ignore[reportMissingImports] - of another environment

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return image(paths[index])

    loader = torch.utils.data.DataLoader(
        Images(), BATCH_SIZE, shuffle=True, num_workers=os.cpu_count() or 1, persistent_workers=True
    )
    return (batch for _ in range(2**30) for batch in loader)


def read(system: str, folder: Path, count: int) -> dict[str, float]:
    """Reads `count` images twice, after a first time, in this process.

    Returns images per second, peak memory in MB, and the processor time until the images are known.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    steps = -(-count // BATCH_SIZE)
    if system not in PEERS:
        importlib.import_module("finetune.data.kept_rows")  # and TensorFlow
    begun = processor_seconds()
    iterator = peer_batches(system, folder) if system in PEERS else iter(tensorflow_batches(system, folder).repeat())
    start = processor_seconds() - begun
    for _ in range(steps):  # starts the threads, fills what is read ahead, and decodes what is kept
        next(iterator)
    begun = time.perf_counter(), processor_seconds()
    for _ in range(2 * steps):
        next(iterator)
    seconds, processor = time.perf_counter() - begun[0], processor_seconds() - begun[1]
    images, peak = 2 * steps * BATCH_SIZE, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speeds = {"images_per_second": images / seconds, "images_per_processor_second": images / processor}
    return {**speeds, "peak_mb": peak, "start_seconds": start}


def processor_seconds() -> float:
    """Returns the processor time of this process, and of worker processes as far as the system says it."""
    total = time.process_time()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def in_a_process(system: str, folder: Path, count: int, python: str = sys.executable) -> dict[str, float]:
    """Runs `read` in a process of its own."""
    command = [python, __file__, "--system", system, "--folder", str(folder), "--images", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images (default %(default)s)")
    parser.add_argument("--pixels", type=int, nargs=2, default=[320, 240], help="width and height (default 320 240)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="numbers of images to measure the memory of")
    parser.add_argument("--read", type=int, help="how many of them are read then (default: all)")
    parser.add_argument("--peers", help="the Python of an environment with grain and torch")
    parser.add_argument("--folder", type=Path, help="where the images are kept (default: a temporary folder)")
    parser.add_argument("--system", choices=(*TENSORFLOW, *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.system:
        print(json.dumps(read(options.system, options.folder, options.images)))
        return 0
    pythons = dict.fromkeys(TENSORFLOW, sys.executable) | (dict.fromkeys(PEERS, options.peers) if options.peers else {})
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        if options.rounds:
            folder = make_images(root / str(options.images), options.images, *options.pixels)
            rounds = [
                {system: in_a_process(system, folder, options.images, python) for system, python in pythons.items()}
                for _ in range(options.rounds)
            ]
            print_speed(rounds, options.images)
        if options.memory:
            print("\n| images | processor seconds to know them, at first | then | peak memory, MB |\n|--:|--:|--:|--:|")
            os.environ["XDG_CACHE_HOME"] = temporary  # what is kept of the heads of files
        for count in options.memory:
            folder = make_images(root / str(count), count, *options.pixels)
            first, second = (in_a_process("finetune", folder, min(options.read or count, count)) for _ in range(2))
            start = [f"{each['start_seconds']:.1f}" for each in (first, second)]
            peak = max(first["peak_mb"], second["peak_mb"])
            print(f"| {count:,} | {' | '.join(start)} | {peak:,.0f} |", flush=True)
    return 0


def print_speed(rounds: Sequence[dict[str, dict[str, float]]], count: int) -> None:
    """Prints the median of each system, and its ratios to Keras' readers, without and with bars, by processor time."""

    def middle(system: str, figure: str) -> float:
        return statistics.median(each[system][figure] for each in rounds)

    references = [middle(system, "images_per_processor_second") for system in (KERAS, KERAS_PAD)]
    print(
        f"| {count:,} JPEG files | images/s | a processor second | ratio to Keras | to Keras, pad | peak memory, MB |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for system in rounds[0]:
        speed, efficiency = middle(system, "images_per_second"), middle(system, "images_per_processor_second")
        peak = max(each[system]["peak_mb"] for each in rounds)
        ratios = " | ".join(f"{efficiency / reference:.2f}" for reference in references)
        print(f"| {system} | {speed:,.0f} | {efficiency:,.0f} | {ratios} | {peak:,.0f} |")


if __name__ == "__main__":
    sys.exit(main())
