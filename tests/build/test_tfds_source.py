"""Data sets of TensorFlow Datasets by index. The package is too large for the suite: a stand-in has its few functions."""

import io
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from finetune.build.data import build_examples
from finetune.data.leaks import leaked_rows
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


class ImageFeature:
    """`tfds.features.Image`."""


class ClassLabel:
    """`tfds.features.ClassLabel`."""

    names = ("dark", "light")


class Source:
    """What `as_data_source` returns: items by index, images encoded where their decoding is skipped."""

    def __init__(self, rows, decoders):
        self.rows, self.decoders = rows, decoders

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        number = self.rows[index]
        pixels = np.full((6 + number % 3, 8, 3), number % 2 * 200 + number, np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        image = data.getvalue() if "image" in (self.decoders or {}) else pixels
        return {
            "image": image,
            "label": np.int64(number % 2),
            "values": np.full(4, number, np.float32),
            "user": number // 5,
        }


class Builder:
    """A prepared data set of 30 training and 10 test rows."""

    data_dir = "/data/tiny"

    def __init__(self, name, data_dir, file_format):
        if name != "tiny":
            raise ValueError(f"Dataset {name} not found.")
        assert file_format == "array_record"
        features = {"image": ImageFeature(), "label": ClassLabel(), "values": object(), "user": object()}
        splits = {} if data_dir else {"train": 30, "test": 10}
        self.info = SimpleNamespace(splits=splits, features=features, full_name="tiny/1.0.0")

    def as_data_source(self, split, decoders=None):
        rows = {"train": range(30), "test": range(10), "train[:50%]": range(15)}
        if split not in rows:
            raise ValueError(f"Unknown split {split!r}.")
        return Source(rows[split], decoders)


@pytest.fixture
def read(recipe, monkeypatch):
    """Reads the stand-in's data set."""
    features = SimpleNamespace(Image=ImageFeature, ClassLabel=ClassLabel)
    package = SimpleNamespace(builder=Builder, features=features, decode=SimpleNamespace(SkipDecoding=object))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", package)

    def examples(shape, keys):
        network = keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1.0)])
        return build_examples(load_recipe(recipe, overrides=[f"data={{{keys}}}"]), network)

    return examples


def test_images_are_decoded_in_the_pipeline_and_classes_have_their_names(read):
    examples = read((6, 8, 3), "tfds: tiny, as: [image, label]")
    x, y = examples.train.first(30)
    assert x.shape == (30, 6, 8, 3)
    np.testing.assert_array_equal(x[:, 3, 4, 0], [number % 2 * 200 + number for number in range(30)])
    assert y.numpy().tolist() == [number % 2 for number in range(30)]
    assert examples.class_names == ("dark", "light")
    assert examples.places["test"][3] == "test:3"


def test_copies_of_training_rows_are_found(read):
    for keys, shape in (("as: [image, label]", (6, 8, 3)), ("inputs: values, target: label", (4,))):
        assert leaked_rows(read(shape, f"tfds: tiny, {keys}")) == {"test": [*range(10)]}


def test_splits_are_those_of_the_recipe(read):
    examples = read((4,), "tfds: tiny, inputs: values, target: label, splits: {train: 'train[:50%]', test: test}")
    assert (len(examples.train), len(examples.test)) == (15, 10)
    grouped = read(
        (4,), "tfds: tiny, inputs: values, target: label, splits: {train: train}, split: {by: group, column: user}"
    )
    assert len(grouped.test) == 5


@pytest.mark.parametrize(
    ("keys", "place", "said"),
    [
        ("tfds: tiny, as: [imag, label]", "as", "`tiny` has no feature `imag`. It has `image`, `label`, `values`, `user`. Did you mean `image`?"),
        ("tfds: tinny, as: [image, label]", "tfds", "`tinny` cannot be opened: Dataset tinny not found. Prepare it once: `tfds.builder('tinny'"),
        ("tfds: tiny, as: [image, label], data_dir: empty", "data_dir", "`tiny` is not prepared in `/data/tiny` for reading by index."),
        ("tfds: tiny, as: [image, label], splits: {train: trian, test: test}", "splits.train", "`splits` names splits of `tiny`: `train`, `test`. Received: `trian`"),
        ("tfds: tiny, inputs: values, target: lable", "target", "`tiny` has no feature `lable`."),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said_with_its_place(read, keys, place, said):
    with pytest.raises(RecipeError) as caught:
        read((6, 8, 3), keys)
    assert f"`data.{place}`: " in str(caught.value)
    assert said in str(caught.value)


def test_without_the_package_the_recipe_says_which_to_install(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    loaded = load_recipe(recipe, overrides=["data={tfds: tiny, as: [image, label]}"])
    with pytest.raises(
        RecipeError, match=r"not installed\. Install it: `pip install 'discriminative-finetune\[tfds\]'`"
    ):
        build_examples(loaded, None)
