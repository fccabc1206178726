#!/usr/bin/env python3
"""Writes what the digit recipes read: PNG files in folders, a table that names them, and a checkpoint of TensorFlow 1.

The images are those of `finetune.examples.digits.uci_digits`: 100 to train on and 200 to test, enlarged to 28x28. The
checkpoint is written by a `tf.compat.v1` session in the way of TF-Slim: scopes, moving averages of the weights, a step
counter, and the head of another task. Its weights are those of `recipes/weights/mnist_cnn.weights.h5`.

    python scripts/make_digit_files.py
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import finetune
from finetune.examples.digits import small_cnn, uci_digits

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
_NAMES = {"kernel": "weights", "bias": "biases"}  # what Slim calls them


def write_images(folder: Path) -> None:
    """Writes `train/3/017.png` and so on, and `digits.csv`, a line for each file."""
    examples = uci_digits(train_rows=100, test_rows=200)
    lines = ["file,digit,part"]
    for part, split in (("train", examples.train), ("test", examples.test)):
        for number, (image, digit) in enumerate(zip(split.x, split.y, strict=True)):
            path = folder / part / str(digit) / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = tf.constant(np.rint(image * 255).astype(np.uint8))
            path.write_bytes(tf.io.encode_png(pixels, compression=9).numpy())
            lines.append(f"{path.relative_to(folder)},{digit},{part}")
    (folder / "digits.csv").write_text("\n".join(lines) + "\n")


def write_checkpoint(path: Path) -> None:
    """Writes a checkpoint as TF-Slim's training loop left it: weights, their moving averages, and the global step."""
    keras.utils.set_random_seed(0)
    network = small_cnn()
    finetune.restore(network, RECIPES / "weights" / "mnist_cnn.weights.h5")
    leaves = finetune.layer_tree(network).leaves
    values = [np.asarray(leaf.variable) for leaf in leaves]  # before the graph, in which no variable has a value
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        written = {}
        for leaf, value in zip(leaves, values, strict=True):
            layer, _, name = leaf.name.rpartition("/")
            scope = "Logits" if layer == "head" else layer
            of_shadow = f"SmallCnn/{scope}/{_NAMES.get(name, name)}"
            # The weights of the last step are noisier than their averages, which Slim's evaluation restores.
            noise = np.random.default_rng(len(written)).normal(0, 0.05, value.shape).astype(np.float32)
            last = np.abs(value + noise) if "variance" in name else value + noise
            written[of_shadow] = tf.Variable(last if leaf.trainable else value)
            if leaf.trainable:
                written[f"{of_shadow}/ExponentialMovingAverage"] = tf.Variable(value)
        written["global_step"] = tf.Variable(np.int64(2250))
        session.run(tf.compat.v1.global_variables_initializer())
        path.parent.mkdir(parents=True, exist_ok=True)
        tf.compat.v1.train.Saver(written).save(session, str(path), write_meta_graph=False, write_state=False)


def main() -> None:
    """Writes the files."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECIPES, help="folder of the recipes")
    out = parser.parse_args().out
    write_images(out / "digits")
    write_checkpoint(out / "weights" / "slim_cnn.ckpt")
    files = [*(out / "digits").rglob("*"), *(out / "weights").glob("slim_cnn.ckpt*")]
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files if file.is_file()):,} bytes")


if __name__ == "__main__":
    main()
