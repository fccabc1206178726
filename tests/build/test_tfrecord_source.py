"""Records of TFRecord files as examples: what is read is what was written, by index and in known places."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.build.data import build_examples
from finetune.data.leaks import leaked_rows
from finetune.data.rows import rows_of, take
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe

VALUES = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)


def serialized(number, values=None, **others):
    data = io.BytesIO()
    Image.new("RGB", (12, 8), (number * 10,) * 3).save(data, "JPEG" if number % 2 else "PNG", quality=95)
    mask = [int(each) for each in np.arange(1600) == number]
    lists = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data.getvalue()])),
        "values": tf.train.Feature(float_list=tf.train.FloatList(value=VALUES[number] if values is None else values)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 3])),
        "kind": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"abc"[number % 3 :][:1]])),
        "user": tf.train.Feature(int64_list=tf.train.Int64List(value=[number // 4])),
        "mask": tf.train.Feature(int64_list=tf.train.Int64List(value=mask)),
    }
    kept = {name: each for name, each in (lists | others).items() if each}
    return tf.train.Example(features=tf.train.Features(feature=kept)).SerializeToString()


@pytest.fixture
def files(recipe):
    """Twenty records in two files, beside a recipe."""
    write(recipe.parent / "a-0.tfrecord", [serialized(number) for number in range(12)])
    write(recipe.parent / "a-1.tfrecord", [serialized(number) for number in range(12, 20)])
    return recipe


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def network(*shape):
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(3)])


def examples_of(recipe, shape, *keys, files="a-*.tfrecord"):
    overrides = [f"data={{tfrecord: {files}}}", *[key if "train." in key else f"data.{key}" for key in keys]]
    return build_examples(load_recipe(recipe, overrides=overrides), network(*shape))


def numbers(examples, split):
    """The numbers of the rows of a split."""
    return [int(place.split(":")[1]) + (12 if "a-1" in place else 0) for place in examples.places[split]]


def read(split):
    return take(rows_of(split.x), tf.range(len(split), dtype=tf.int64)).numpy()


def test_values_are_those_that_were_written(files):
    examples = examples_of(files, (10,), "inputs=values", "target=kind", "split={by: group, column: user}")
    assert examples.class_names == ("a", "b", "c")
    for name, split in (("train", examples.train), ("test", examples.test)):
        np.testing.assert_array_equal(read(split), VALUES[numbers(examples, name)])
        assert split.y.tolist() == [number % 3 for number in numbers(examples, name)]
    assert {n // 4 for n in numbers(examples, "train")}.isdisjoint({n // 4 for n in numbers(examples, "test")})


def test_images_are_decoded_in_the_pipeline_and_have_the_size_of_the_network(files):
    examples = examples_of(files, (8, 12, 3), "inputs=image", "target=label")
    rows = np.concatenate([np.asarray(x) for x, _ in examples.train.batches(7)])
    assert rows.shape == (16, 8, 12, 3)
    np.testing.assert_array_equal(rows[:, 4, 6, 0], np.array(numbers(examples, "train")) * 10)
    sized = examples_of(
        files, (None, None, 3), "inputs=image", "target=label", "features={image: {decode: jpeg, size: [4, 6]}}"
    )
    assert sized.train.first(1)[0].shape == (1, 4, 6, 3)


def test_files_of_splits_stay_in_them(files):
    examples = examples_of(
        files, (10,), "inputs=values", "target=label", files="{train: a-0.tfrecord, test: [a-1.tfrecord]}"
    )
    assert (len(examples.train), len(examples.test)) == (12, 8)


def test_large_targets_such_as_masks_are_read_when_they_are_needed(files):
    keys = ("inputs=values", "target=mask", "features={mask: {dtype: float32, shape: [40, 40, 1]}}", "train.loss=mse")
    with pytest.raises(RecipeError, match=r"`mask` is int64 of shape \(1600,\), and `features` says float32"):
        examples_of(files, (10,), *keys)
    examples = examples_of(files, (10,), *keys[:2], "features={mask: {dtype: uint8, shape: [40, 40, 1]}}", keys[3])
    _, y = examples.train.first(16)
    assert y.shape == (16, 40, 40, 1)
    assert np.argmax(y.numpy().reshape(16, -1), axis=1).tolist() == numbers(examples, "train")


def test_what_was_recognised_is_said(files):
    about = examples_of(files, (10,), "inputs=values", "target=label").source
    assert about["files"] == ["a-0.tfrecord", "a-1.tfrecord"]
    assert about["features"]["values"] == "float32 of shape (10,)"
    assert about["features"]["image"] == "image"


def test_records_that_lack_a_target_or_are_damaged_are_named_or_skipped(files):
    lacking = [serialized(n, label=None) if n == 15 else serialized(n) for n in range(12, 20)]
    write(files.parent / "a-1.tfrecord", lacking)
    keys = ("inputs=values", "target=label")
    data = bytearray((files.parent / "a-0.tfrecord").read_bytes())
    data[40] ^= 1
    (files.parent / "a-0.tfrecord").write_bytes(data)
    with pytest.raises(RecipeError, match=r"`a-0\.tfrecord:0` is damaged, or the file has changed"):
        examples_of(files, (10,), *keys)
    examples = examples_of(files, (10,), *keys, "on_error=skip")
    assert examples.source["skipped"] == ["a-0.tfrecord:0", "a-1.tfrecord:3"]
    write(files.parent / "a-0.tfrecord", [serialized(number) for number in range(12)])
    with pytest.raises(
        RecipeError, match=r"`a-1\.tfrecord:3` is not: Feature: label .* is required but could not be found"
    ):
        examples_of(files, (10,), *keys)
    examples = examples_of(files, (10,), *keys, "on_error=skip")
    assert examples.source["skipped"] == ["a-1.tfrecord:3"]
    assert len(examples.train) + len(examples.test) == 19


def test_the_features_of_frozen_parts_are_known_again(files):
    once, again = (examples_of(files, (8, 12, 3), "inputs=image", "target=label").x_train.fingerprint for _ in range(2))
    assert once == again
    assert once != examples_of(files, (4, 4, 3), "inputs=image", "target=label").x_train.fingerprint


@pytest.mark.parametrize(
    ("keys", "place", "said"),
    [
        (("inputs=valeus", "target=label"), "inputs", "Records have no feature `valeus`. They have `image` (image), `kind` (string)"),
        (("inputs=values", "target=lable"), "target", "Records have no feature `lable`."),
        (("inputs=values", "target=label", "features={lable: int64}"), "features.lable", "Records have no feature `lable`."),
        (("inputs=values", "target=label", "features={label: float32}"), "target", "`label` is int64, and `features` says float32"),
        (("inputs=values", "target=label", "split={by: group, column: usr}"), "split.column", "Records have no feature `usr`."),
        (("inputs={a: values, b: user}", "target=label"), "tfrecord", "for each input of the network: `its only input`. Received: `a`, `b`."),
        (("inputs=image", "target=label"), "tfrecord", "Images have height, width and 1 or 3 channels. The network takes (10,)."),
        (("inputs=values", "target=kind", "train.loss=mse"), "tfrecord", "`mse` takes numbers, and the targets are text such as `a`, `b`."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_features_is_said_with_its_place(files, keys, place, said):
    with pytest.raises(RecipeError) as caught:
        examples_of(files, (10,), *keys)
    assert f"`data.{place}`: " in str(caught.value)
    assert said in str(caught.value)


def test_copies_of_features_are_found_whatever_else_the_records_hold(files):
    copies = [serialized(number, VALUES[3] if number == 14 else None) for number in range(12, 16)]
    write(files.parent / "b-0.tfrecord", copies)
    parts = "{train: a-0.tfrecord, test: b-0.tfrecord}"
    assert leaked_rows(examples_of(files, (10,), "inputs=values", "target=label", files=parts)) == {"test": [2]}
    assert leaked_rows(examples_of(files, (8, 12, 3), "inputs=image", "target=label", files=parts)) == {}
