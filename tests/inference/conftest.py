"""Finished runs on each kind of data, made once for a process when a test first asks for them."""

import csv
import io
import os
import signal
import wave

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import finetune
from finetune.inference.fine_tuned import load
from finetune.interruption import Stopped

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
HEAD = "model: {keras_file: net.keras, head: {classes: auto}}\n"
TAIL = """
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.05}]
train: {epochs: 8, batch_size: 8}
"""


def images(folder):
    for name, colour in COLOURS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (12 + number, 10), colour).save(folder / "photos" / name / f"{number}.png")
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, pooled), HEAD + "data: {images: photos/, split: {test: 0.34}}"


def table(folder):
    """Numbers and categories, and missing values of both; a class by the one, a number by the other."""
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "town", "kind", "price"])
        for row in range(40):
            town = ["Ulm", "Bonn", "", "7"][row % 4]
            writer.writerow([row if row % 5 else "NA", town, "old" if row > 20 else "new", 1.5 * row + 3])
    inputs = keras.Input((6,), name="rows")
    body = keras.layers.Dense(8, activation="relu")(inputs)
    kind = keras.layers.Dense(2, name="kind")(body)
    price = keras.layers.Dense(1, name="price")(body)
    return keras.Model(inputs, {"kind": kind, "price": price}), (
        "model: {keras_file: net.keras}\n"
        "data: {table: rows.csv, inputs: [age, town], target: {kind: kind, price: price}}"
    )


def labels(folder):
    """Texts with several labels, and a number beside them."""
    import tokenizers

    words = ["[PAD]", "[UNK]", "red", "green", "blue", "box"]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    with (folder / "rows.tsv").open("w") as file:
        file.write("text\tsize\tcolours\n")
        for row in range(32):
            chosen = [word for place, word in enumerate(words[2:5]) if row >> place & 1]
            file.write(f"{' '.join(chosen)} box\t{row}\t{'|'.join(chosen) or '|'}\n")
    ids, size = keras.Input((None,), dtype="int32", name="ids"), keras.Input((1,), name="size")
    x = keras.layers.GlobalMaxPooling1D()(keras.layers.Embedding(6, 8)(ids))
    return keras.Model([ids, size], keras.layers.Concatenate()([x, size])), (
        HEAD + "data: {table: rows.tsv, inputs: {ids: text, size: size}, target: colours, "
        "tokenizer: {file: tokenizer.json, length: 6}}"
    )


def audio(folder):
    for name, frequency in {"low": 2, "high": 20}.items():
        (folder / "clips" / name).mkdir(parents=True)
        for number in range(6):
            samples = np.sin(np.arange(100) * frequency / 16 + number) * 2**14
            with wave.open(str(folder / "clips" / name / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(100)
                file.writeframes(samples.astype("<i2").tobytes())
    inputs = keras.Input((100,))
    x = keras.layers.Conv1D(4, 5, activation="relu")(keras.layers.Reshape((100, 1))(inputs))
    return keras.Model(
        inputs, keras.layers.GlobalMaxPooling1D()(x)
    ), HEAD + "data: {audio: clips/, split: {test: 0.34}}"


def arrays(folder):
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    np.savez(folder / "rows.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), (
        "model: {keras_file: net.keras, head: {classes: 1}}\ndata: {npz: rows.npz}"
    )


KINDS = {made.__name__: made for made in (images, table, labels, audio, arrays)}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """Returns the folder of a finished run on a kind of data; what it was made of lies beside it."""
    made = {}

    def call(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            network, recipe = KINDS[kind](folder)
            network.save(folder / "net.keras")
            (folder / "recipe.yaml").write_text(recipe + TAIL)
            made[kind] = finetune.run(folder / "recipe.yaml", folder / "run").folder
        return made[kind]

    return call


@pytest.fixture(scope="session")
def loaded(run_of):
    """Returns a finished run on a kind of data, loaded."""
    made = {}
    return lambda kind: made.setdefault(kind, None) or made.update({kind: load(run_of(kind))}) or made[kind]


class StopsAt(io.StringIO):
    """What a console writes to: asks the process to end when the line of an epoch comes."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def write(self, text):
        if self.text in text:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


@pytest.fixture(scope="session")
def best_kept(tmp_path_factory):
    """Returns the folder of a finished run that kept its best weights, and of the same run stopped after epoch 4."""
    folder = tmp_path_factory.mktemp("best")
    keras.utils.set_random_seed(0)  # of other weights a later epoch may be the best
    network, recipe = arrays(folder)
    network.save(folder / "net.keras")
    # By this measure the first epoch is the best: its weights are not the newest.
    keys = "epochs: 6, keep: best, validation_fraction: 0.3, until: {monitor: val_loss, mode: max, patience: 9},"
    (folder / "recipe.yaml").write_text(recipe + TAIL.replace("epochs: 8,", keys))
    finetune.run(folder / "recipe.yaml", folder / "run")
    console = Console(file=StopsAt("epoch 4/6"))
    with pytest.raises(Stopped):
        finetune.run(folder / "recipe.yaml", folder / "stopped", console=console)
    return folder / "run", folder / "stopped"
