"""Data sets of Keras from local files, in the format that Keras downloads."""

import gzip
import pickle
import tarfile

import keras
import numpy as np
import pytest

from finetune.build.data import build_examples
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (30, 28, 28), np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)


@pytest.fixture
def read(recipe):
    """Reads a data set from a local file."""

    def examples(name, path, network, *keys):
        overrides = [
            f"data={{keras_dataset: {name}, path: '{path}'}}",
            *[k if "train." in k else f"data.{k}" for k in keys],
        ]
        return build_examples(load_recipe(recipe, overrides=overrides), network)

    return examples


def network(*shape):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(10)])


def test_mnist_has_the_axis_of_channels_that_the_network_takes(read):
    np.savez("mnist.npz", x_train=IMAGES[:20], y_train=LABELS[:20], x_test=IMAGES[20:], y_test=LABELS[20:])
    for shape in ((28, 28), (28, 28, 1), (28, 28, 3)):
        examples = read("mnist", "mnist.npz", network(*shape))
        assert examples.x_train.shape == (20, *shape)
        np.testing.assert_array_equal(examples.x_test.reshape(10, 28, 28, -1)[..., 0], IMAGES[20:])
    assert examples.y_test.tolist() == LABELS[20:].tolist()
    scaled = read("mnist", "mnist.npz", network(28, 28), "value_range=[0, 1]", "limit=15")
    assert scaled.x_train.max() <= 1
    assert len(scaled.train) + len(scaled.test) == 15
    again = read("mnist", "mnist.npz", network(28, 28), "split={test: 0.5, validation: 0.1}")
    assert [len(split) for split in (again.train, again.test, again.validation)] == [12, 15, 3]
    part = read("mnist", "mnist.npz", network(28, 28), "split={validation: 0.1}")
    assert part.y_test.tolist() == LABELS[20:].tolist()
    assert [len(split) for split in (part.train, part.validation)] == [18, 2]


def test_fashion_mnist_is_a_folder_of_four_files(read, recipe):
    for part, rows in (("train", 60000), ("t10k", 10000)):
        for kind, head, size in (("labels-idx1", 8, rows), ("images-idx3", 16, rows * 784)):
            with gzip.open(recipe.parent / f"{part}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(bytes(head + size))
    examples = read("fashion_mnist", ".", network(28, 28), "limit=100")
    assert examples.class_names[-1] == "Ankle boot"
    assert len(examples.train) + len(examples.test) == 100


@pytest.mark.parametrize("form", ["folder", "inner folder", "archive"])
def test_cifar_is_an_archive_or_its_folder(read, recipe, form):
    folder = recipe.parent / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        batch = {b"data": np.full((10000, 3072), 7, np.uint8), b"labels": [3] * 10000}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    path = {"folder": ".", "inner folder": "cifar-10-batches-py", "archive": "cifar.tar.gz"}[form]
    if form == "archive":
        with tarfile.open("cifar.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(folder, "cifar-10-batches-py")
    examples = read("cifar10", path, network(32, 32, 3), "limit=60")
    assert examples.x_train.shape == (50, 32, 32, 3)
    assert examples.class_names[examples.y_train[0]] == "cat"


def test_texts_have_a_length_and_words_that_the_embedding_knows(read):
    texts = np.array([[*range(n + 1)] for n in range(12)], dtype=object)
    np.savez("imdb.npz", x_train=texts, y_train=LABELS[:12] % 2, x_test=texts, y_test=LABELS[:12] % 2)
    embedding = keras.Sequential([keras.Input((5,)), keras.layers.Embedding(9, 2)])
    with np.load("imdb.npz", allow_pickle=True) as file:
        assert len(file["x_train"]) == 12
    examples = read("imdb", "imdb.npz", embedding)
    assert examples.x_train.shape == (12, 5)
    assert examples.x_train.max() < 9
    longest = max(examples.x_train.tolist(), key=lambda row: row.count(0) == 0)
    assert longest == [1, 3, 4, 5, 6]  # the start, then words from 3 on, as Keras counts them
    assert examples.source["words"].startswith("those beyond 9 become 2")


def test_numbers_are_normalized_by_the_training_rows(read):
    x, y = RANDOM.normal(5, 3, (50, 13)), RANDOM.normal(size=50)
    np.savez("boston.npz", x=x, y=y)
    examples = read("boston_housing", "boston.npz", network(13), "train.loss=mse")
    np.testing.assert_allclose(examples.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(examples.x_train.std(axis=0), 1, atol=1e-6)
    assert len(examples.test) == 10


@pytest.mark.parametrize(
    ("name", "path", "keys", "said"),
    [
        ("mnist", "nowhere.npz", (), "`path` is the local file of a data set."),
        ("mnist", ".", (), "`path` of `mnist` is its file, `mnist.npz`."),
        ("mnist", "tiny.yaml", (), "tiny.yaml` is none."),
        ("mnist", "other.npz", (), "other.npz` cannot be read as `mnist`: KeyError: "),
        ("cifar10", ".", (), "`path` is the archive of `cifar10`, or the folder `cifar-10-batches-py`."),
        ("fashion_mnist", "tiny.yaml", (), "is the folder with its four files `*-ubyte.gz`."),
    ],
)
def test_other_files_are_refused(read, name, path, keys, said):
    np.savez("other.npz", x=LABELS)
    with pytest.raises(RecipeError) as caught:
        read(name, path, network(28, 28), *keys)
    assert "`data.path`: " in str(caught.value)
    assert said in str(caught.value)


def test_without_a_network_keras_says_where_it_looks(recipe, monkeypatch):
    monkeypatch.setattr("keras.datasets.mnist.load_data", offline)
    with pytest.raises(
        RecipeError,
        match=r"`mnist` is downloaded by Keras, which failed: .*Keras looks for it in `.*datasets` first; or name a local file with `path`",
    ):
        build_examples(load_recipe(recipe, overrides=["data={keras_dataset: mnist}"]), network(28, 28))


def offline():
    raise Exception("URL fetch failure on https://storage.googleapis.com/...: None -- [Errno -3] Temporary failure")
