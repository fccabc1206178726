"""The tasks of `bench_transfer.py`: a pretrained network, rows of another task, and the layer groups between.

Networks of other people come from the package index, as for `finetune fetch`; the others are pretrained here, on rows
that no split of the task contains. Networks of ImageNet and of sounds are too slow for a grid on two cores.
"""

import functools
import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml
from keras import layers, ops
from sklearn.datasets import load_breast_cancer, load_digits

import finetune
from finetune.examples.digits import small_cnn, uci_digits
from finetune.examples.minilm import classifier
from finetune.examples.networks import mlp, word_average
from finetune.files.fetchable import MINILM, VADER
from finetune.files.packages import package_folder

ROOT = Path(__file__).resolve().parent.parent
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LOW = (3e-4, 1e-3, 3e-3, 1e-2)
Rows = tuple[Any, np.ndarray]  # inputs (an array, or a tuple of them) and classes


@dataclass(frozen=True)
class Split:
    """Rows to train on, to choose by, and to judge by."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True, eq=False)
class Task:
    """What is fine-tuned to what.

    Attributes:
        about: The network and its pretraining, and the task, in words.
        sizes: Rows to train on: few, and more.
        build: Makes the network with fresh weights; its last layer is the head.
        groups: Names of the layer groups and the layers in each, input to output; the last one is the head.
        pretrained: Returns the pretrained weights of all layers, or of all but the head, in the order of the network.
        split: Returns the rows for a number of rows to train on and a seed.
        rates: Peak rates of the grid, so that hardly any way is best at an edge.
        steps_per_epoch: Batches in an epoch, of which there are 8 with few rows and 12 with more.
        batch_size: Rows in a batch.
    """

    about: str
    sizes: tuple[int, int]
    build: Callable[[], keras.Model]
    groups: Mapping[str, tuple[str, ...]]
    pretrained: Callable[[], Sequence[np.ndarray]]
    split: Callable[[int, int], Split]
    rates: tuple[float, ...] = RATES
    steps_per_epoch: int = 5
    batch_size: int = 16


@functools.lru_cache(maxsize=4)
def start(task: Task, seed: int, *, restored: bool) -> list[np.ndarray]:
    """Returns the weights that a training starts from.

    Args:
        task: The task.
        seed: Of the fresh weights.
        restored: Whether the pretrained weights are restored; what they do not have stays fresh.
    """
    keras.utils.set_random_seed(seed)
    weights = task.build().get_weights()
    known = list(task.pretrained()) if restored else []
    return known + weights[len(known) :]


def split_rows(x: Any, y: np.ndarray, sizes: tuple[int, int, int], seed: int) -> Split:
    """Draws disjoint rows to train, to validate and to test on; those to train on have all classes equally often.

    Args:
        x: Inputs.
        y: Classes.
        sizes: How many rows there are to train, to validate and to test on.
        seed: Of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    train, validation, test = sizes
    rest = order[validation + test :]
    turn = np.zeros(len(rest), int)  # how often the class of a row came before it
    for label in np.unique(y):
        turn[y[rest] == label] = np.arange(np.count_nonzero(y[rest] == label))
    rest = rest[np.argsort(turn, kind="stable")]
    parts = (rest[:train], order[:validation], order[validation:][:test])
    assert len(parts[0]) == train, f"{len(rest)} rows are left to train on, and {train} are needed"
    return Split(*((tf.nest.map_structure(lambda each, r=rows: each[r], x), y[rows]) for rows in parts))


def pretrain(
    model: keras.Model, x: Any, y: np.ndarray, *, epochs: int, rate: float, loss: str = ""
) -> list[np.ndarray]:
    """Trains a network on a related task, and returns its weights without those of the head."""
    keras.utils.set_random_seed(0)
    model.set_weights(keras.models.clone_model(model).get_weights())  # the same, whatever was made before
    steps = epochs * -(-len(y) // 32)
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(adam, loss=loss or "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[finetune.FastLoop()])
    return model.get_weights()[: -len(model.layers[-1].weights)]


def headed(body: keras.Model, classes: int, activation: str = "softmax") -> keras.Model:
    """Returns a network with a new head."""
    return keras.Model(body.inputs, layers.Dense(classes, activation=activation, name="head")(body.outputs[0]))


# -- Digits of MNIST's size -------------------------------------------------------------------------------------------

CNN = {"stem": ("conv1", "bn1"), "middle": ("conv2", "bn2"), "top": ("conv3", "bn3"), "head": ("head",)}


@functools.lru_cache
def mnist_weights(with_head: bool) -> list[np.ndarray]:
    """Returns the weights of the network of `recipes/digits.yaml`, trained on MNIST."""
    model = small_cnn()
    finetune.restore(model, ROOT / "recipes" / "weights" / "mnist_cnn.weights.h5")
    return model.get_weights() if with_head else model.get_weights()[:-2]


def digits(rows: int, seed: int) -> Split:
    """Returns a split of the UCI digits."""
    split = uci_digits(rows, test_rows=500, validation_rows=200, seed=seed)
    assert split.x_validation is not None
    return Split((split.x_train, split.y_train), (split.x_validation, split.y_validation), (split.x_test, split.y_test))


def corrupted_digits(rows: int, seed: int) -> Split:
    """Returns the same split with other images: dark on light, of low contrast, noisy."""
    random = np.random.default_rng(seed)

    def corrupt(x: np.ndarray) -> np.ndarray:
        return np.clip(0.7 - 0.4 * x + random.normal(0, 0.1, x.shape), 0, 1).astype("float32")

    split = digits(rows, seed)
    return Split(*((corrupt(x), y) for x, y in (split.train, split.validation, split.test)))


# -- Digits of 8x8 pixels, pretrained here -----------------------------------------------------------------------------


@functools.lru_cache
def tiny_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns the UCI digits as they are: float32 of shape `(1797, 8, 8, 1)` in 0..1, and their classes."""
    images, classes = load_digits(return_X_y=True)
    return (images / 16).astype("float32").reshape(-1, 8, 8, 1), classes


def tiny_cnn(classes: int = 5) -> keras.Model:
    """Makes a network of three convolutions for images of 8x8 pixels."""
    x = inputs = keras.Input((8, 8, 1))
    for number, filters in enumerate((16, 32, 32), start=1):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{number}")(x)
        x = layers.MaxPooling2D(padding="same")(layers.ReLU()(x))
    return headed(keras.Model(inputs, layers.Flatten()(x)), classes)


@functools.lru_cache
def first_digits() -> list[np.ndarray]:
    """Returns the weights of a network that tells 0 to 4 apart."""
    x, y = tiny_digits()
    return pretrain(tiny_cnn(), x[y < 5], y[y < 5], epochs=10, rate=3e-3)


def last_digits(rows: int, seed: int) -> Split:
    """Returns a split of the digits from 5 to 9."""
    x, y = tiny_digits()
    return split_rows(x[y >= 5], y[y >= 5] - 5, (rows, 200, 400), seed)


def pixels(classes: int = 10) -> keras.Model:
    """Makes a network for a table of 64 columns."""
    inputs = keras.Input((64,))
    return headed(keras.Model(inputs, mlp([64, 64])(inputs)), classes)


@functools.lru_cache
def parity() -> list[np.ndarray]:
    """Returns the weights of a network that tells even digits from odd ones, trained on every other row."""
    x, y = tiny_digits()
    return pretrain(pixels(2), x[::2].reshape(-1, 64), y[::2] % 2, epochs=20, rate=3e-3)


def pixel_rows(rows: int, seed: int) -> Split:
    """Returns a split of the other rows, with all ten classes."""
    x, y = tiny_digits()
    return split_rows(x[1::2].reshape(-1, 64), y[1::2], (rows, 200, 400), seed)


# -- A table ----------------------------------------------------------------------------------------------------------


@functools.lru_cache
def tumours() -> tuple[np.ndarray, np.ndarray]:
    """Returns 569 rows of 30 measured columns, each of mean 0 and spread 1, and whether a tumour is benign."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return ((x - x.mean(0)) / x.std(0))[order].astype("float32"), y[order]


def cells(classes: int = 2, activation: str = "softmax") -> keras.Model:
    """Makes a network for the 20 columns of means and errors."""
    inputs = keras.Input((20,))
    return headed(keras.Model(inputs, mlp([32, 32])(inputs)), classes, activation)


@functools.lru_cache
def worst_cells() -> list[np.ndarray]:
    """Returns the weights of a network that predicts the ten columns of worst cells, trained on 200 rows."""
    x, _ = tumours()
    return pretrain(cells(10, "linear"), x[:200, :20], x[:200, 20:], epochs=60, rate=3e-3, loss="mse")


def tumour_rows(rows: int, seed: int) -> Split:
    """Returns a split of the other 369 rows."""
    x, y = tumours()
    return split_rows(x[200:, :20], y[200:], (rows, 100, 200), seed)


# -- Texts ------------------------------------------------------------------------------------------------------------

SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
WORDS, LENGTH = 4000, 32


@functools.lru_cache
def rated_texts(source: str) -> tuple[list[str], np.ndarray]:
    """Returns texts of a source, and the mean rating of each from -4 to 4 (Hutto and Gilbert, 2014)."""
    with tarfile.open(package_folder(VADER) / "hutto_ICWSM_2014.tar.gz") as archive:
        member = archive.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
        assert member
        lines = [line.split("\t", 2) for line in io.TextIOWrapper(member, encoding="utf-8").read().splitlines()]
    return [text for _, _, text in lines], np.array([float(rating) for _, rating, _ in lines])


@functools.lru_cache
def vocabulary() -> dict[str, int]:
    """Returns the ids of the words in movie sentences, the most frequent first; 0 is padding and 1 any other word."""
    counts = Counter(word for text in rated_texts(SOURCES[0])[0] for word in words_of(text))
    return {word: number for number, (word, _) in enumerate(counts.most_common(WORDS - 2), start=2)}


def words_of(text: str) -> list[str]:
    """Returns the words and marks of a text in lower case."""
    return re.findall(r"[a-z]+|[!?]", text.lower())


def word_ids(texts: Sequence[str]) -> np.ndarray:
    """Returns the ids of the first words of texts, filled up with 0."""
    ids, table = vocabulary(), np.zeros((len(texts), LENGTH), "int32")
    for row, text in enumerate(texts):
        found = [ids.get(word, 1) for word in words_of(text)[:LENGTH]]
        table[row, : len(found)] = found
    return table


def words(classes: int = 2) -> keras.Model:
    """Makes a network that averages an embedding of each word."""
    return headed(word_average(WORDS, 32, (32,), dropout=0.0), classes)


@functools.lru_cache
def movie_sentiment() -> list[np.ndarray]:
    """Returns the weights of a network that tells praise from blame in 9,000 movie sentences."""
    texts, ratings = rated_texts(SOURCES[0])
    return pretrain(words(), word_ids(texts[:9000]), (ratings[:9000] > 0).astype(int), epochs=4, rate=3e-3)


@functools.lru_cache
def product_table() -> tuple[np.ndarray, np.ndarray]:
    """Returns product sentences that are clearly rated, as ids, and whether they praise."""
    texts, ratings = rated_texts(SOURCES[1])
    clear = np.flatnonzero(np.abs(ratings) >= 0.5)
    return word_ids([texts[row] for row in clear]), (ratings[clear] > 0).astype(int)


@functools.lru_cache
def topic_table() -> tuple[np.ndarray, np.ndarray]:
    """Returns texts of four sources, as ids, and from which source each is; movie sentences not pretrained on."""
    texts = [rated_texts(source)[0][-1500:] for source in SOURCES]
    return word_ids([text for of_source in texts for text in of_source]), np.repeat(np.arange(4), 1500)


# -- MiniLM: its last layer, on the features of those below -----------------------------------------------------------

TOKENS = 16


@functools.lru_cache
def minilm() -> keras.Model:
    """Returns MiniLM with its pretrained weights, as `recipes/parts/minilm.yaml` restores it."""
    rules = yaml.safe_load((ROOT / "recipes" / "parts" / "minilm.yaml").read_text(encoding="utf-8"))["restore"]
    model = classifier()
    rules["transform"] = [finetune.Transform(**rule) for rule in rules["transform"]]
    finetune.restore(model, package_folder(MINILM) / "model.safetensors", exclude=["head"], **rules)
    return model


def last_transformer_layer() -> keras.Model:
    """Makes a network of the last layer of MiniLM, the mean over the tokens, and a head."""
    features, present = keras.Input((TOKENS, 384)), keras.Input((TOKENS,), dtype="bool")
    layer = classifier(num_layers=1, vocabulary=2, max_length=2).get_layer("layer_0")
    weights = ops.expand_dims(ops.cast(present, "float32"), -1)
    mean = ops.divide(ops.sum(layer([features, present]) * weights, axis=1), ops.sum(weights, axis=1))
    outputs = layers.Dense(2, activation="softmax", name="head")(layers.UnitNormalization()(mean))
    return keras.Model([features, present], outputs)


@functools.lru_cache
def movie_features() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Returns what the first five layers give for 1,000 movie sentences, which tokens there are, and the classes."""
    from tokenizers import Tokenizer

    texts, ratings = rated_texts(SOURCES[0])
    chosen = np.random.default_rng(0).permutation(len(texts))[:1000]
    tokenizer: Any = Tokenizer.from_file(str(package_folder(MINILM) / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    tokens = np.array([each.ids for each in tokenizer.encode_batch([texts[row] for row in chosen])], "int32")

    model = minilm()

    @tf.function
    def run(batch: Any) -> Any:
        x = model.get_layer("embeddings")(batch)
        for number in range(5):
            x = model.get_layer(f"layer_{number}")([x, batch != 0])
        return x

    features = np.concatenate([run(tokens[row : row + 100]).numpy() for row in range(0, len(tokens), 100)])
    return (features, tokens != 0), (ratings[chosen] > 0).astype(int)


# -- All of them ------------------------------------------------------------------------------------------------------


def sampled(table: Callable[[], tuple[Any, np.ndarray]]) -> Callable[[int, int], Split]:
    """Returns the function that splits a table, with 200 rows to validate and 500 to test on."""
    return lambda rows, seed: split_rows(*table(), (rows, 200, 500), seed)


TASKS = {
    "digits": Task(
        "a CNN trained on MNIST, to the 8x8 digits of UCI, enlarged",
        (20, 100), small_cnn, CNN, lambda: mnist_weights(False), digits, rates=LOW, batch_size=8,
    ),
    "corrupted digits": Task(
        "the same, head included, to these digits dark on light, of low contrast and noisy",
        (20, 100), small_cnn, CNN, lambda: mnist_weights(True), corrupted_digits, batch_size=8,
    ),
    "new digits": Task(
        "a CNN trained on the digits 0 to 4, to the digits 5 to 9",
        (10, 50), tiny_cnn, CNN, first_digits, last_digits, steps_per_epoch=12,
    ),
    "even or odd": Task(
        "a network for tables trained to tell even digits from odd ones by 64 columns, to all ten digits",
        (20, 100), pixels, {"first": ("mlp/hidden_0",), "second": ("mlp/hidden_1",), "head": ("head",)}, parity,
        pixel_rows, steps_per_epoch=12,
    ),
    "tumours": Task(
        "a network for tables trained to predict the sizes of the worst cells, to benign or malignant",
        (10, 50), cells, {"first": ("mlp/hidden_0",), "second": ("mlp/hidden_1",), "head": ("head",)}, worst_cells,
        tumour_rows, steps_per_epoch=12,
    ),
    "product sentences": Task(
        "an average of words trained on praise and blame of films, to praise and blame of products",
        (50, 400), words, {"embedding": ("embedding",), "hidden": ("mlp",), "head": ("head",)}, movie_sentiment,
        sampled(product_table), steps_per_epoch=12,
    ),
    "topics": Task(
        "the same, to which of four sources a text is from",
        (40, 400), functools.partial(words, 4), {"embedding": ("embedding",), "hidden": ("mlp",), "head": ("head",)},
        movie_sentiment, sampled(topic_table), steps_per_epoch=12,
    ),
    "movie sentences": Task(
        "the last layer of MiniLM on the features of those below, to praise and blame of films",
        (50, 200), last_transformer_layer,
        {"attention": ("layer_0/attention", "layer_0/attention_norm"),
         "dense": ("layer_0/intermediate", "layer_0/output", "layer_0/output_norm"), "head": ("head",)},
        lambda: minilm().get_layer("layer_5").get_weights(), sampled(movie_features),
        rates=LOW, batch_size=8,
    ),
}  # fmt: skip
