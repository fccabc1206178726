"""Features of records are recognised, checked, and read as they are described."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.record_features import Feature, check_features, look_at, make_feature, parse
from finetune.errors import DataError


def example(**values):
    """A serialized example with these features."""
    features = {}
    for name, value in values.items():
        value = value if isinstance(value, list) else [value]
        if isinstance(value[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        elif isinstance(value[0], float):
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=value))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def picture():
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    return data.getvalue()


RECORDS = [
    example(image=picture(), label=n, name=b"a", values=[1.5, 2.0, n / 2], ids=[*range(n + 1)]) for n in range(5)
]


def test_features_are_recognised_in_the_first_records():
    looks = look_at(RECORDS)
    assert looks["label"] == Feature("int64", "int64")
    assert looks["values"] == Feature("float32", "float32", (3,))
    assert looks["name"] == Feature("string", "string")
    assert looks["image"].is_image
    assert looks["ids"].startswith("has 1 to 5 values of type `int64`: say how long it becomes, with `length`")
    assert look_at([example(a=1), example(b=1)])["a"] == Feature("int64", "int64")
    assert look_at([example(a=1), example(a=1.0)])["a"].startswith("has several types: `float_list`, `int64_list`")


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (make_feature("float32", (3,)), [1.5, 2.0, 1.0]),
        (make_feature("float32", (1, 3)), [[1.5, 2.0, 1.0]]),
        (make_feature("float16", (3,)), [1.5, 2.0, 1.0]),
    ],
)
def test_values_have_the_shape_and_type_that_they_are_said_to_have(feature, expected):
    value = parse(tf.constant(RECORDS[2]), {"values": feature})["values"]
    assert value.dtype == feature.dtype
    assert value.numpy().tolist() == expected


def test_lists_of_any_length_are_cut_or_filled_up():
    feature = make_feature("int32", length=3)
    read = [parse(tf.constant(record), {"ids": feature})["ids"].numpy().tolist() for record in RECORDS]
    assert read == [[0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("names", "described", "said"),
    [
        (["lable"], {}, "Records have no feature `lable`. They have `ids` (has 1 to 5 values of type `int64`), `image` (image)"),
        (["lable"], {}, "Did you mean `label`?"),
        (["ids"], {}, "`ids` has 1 to 5 values of type `int64`: say how long it becomes, with `length`: `features: {ids: {dtype"),
        (["values"], {"values": make_feature("float32", (4,))}, "`values` is float32 of shape (3,), and `features` says float32 of shape (4,)."),
        (["label"], {"label": make_feature("string")}, "`label` is int64, and `features` says string. Correct it."),
    ],
)  # fmt: skip
def test_features_that_are_missing_or_stored_otherwise_are_refused(names, described, said):
    with pytest.raises(DataError) as caught:
        check_features(names, described, look_at(RECORDS))
    assert said in str(caught.value)


@pytest.mark.parametrize(("record", "said"), [(b"\xff\xff\xffabc", "Record 0 is not"), (b"", "The first have none")])
def test_records_that_are_no_examples_are_refused(record, said):
    with pytest.raises(DataError, match=said):
        look_at([record])


def test_a_feature_is_described_in_words():
    assert make_feature("float32", (2, 3)).described() == "float32 of shape (2, 3)"
    assert make_feature("int64", length=4).described() == "int64 of length 4"
    assert make_feature(None, size=(9, 8)).described() == "image of 9x8"
    assert np.prod(make_feature("int64").shape) == 1
