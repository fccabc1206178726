"""Columns that pyarrow has read have the values that they have when Python's objects are looked at."""

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from finetune.data import delimited_text
from finetune.data.arrow_columns import typed_column
from finetune.data.table_files import read_table, table_of_columns
from finetune.data.table_head import MISSING

SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]


def same(path, array, missing=None):
    """Checks that a column of a file is what its values as Python's objects would be; returns it."""
    parquet.write_table(pa.table({"x": array}), path)
    made, plain = read_table(path, missing).column("x"), table_of_columns({"x": array.to_pylist()}, "t", missing)
    expected = plain.column("x")
    assert (made.kind, made.whole, made.missing_words) == (expected.kind, expected.whole, expected.missing_words)
    assert made.texts().tolist() == expected.texts().tolist()
    if made.kind == "number":
        assert made.values.tobytes() == expected.values.tobytes()
        assert made.values.dtype == np.float64
    return made


DAY = datetime.date(2024, 2, 29)
ARRAYS = {
    "whole": pa.array([1, 2, -3], pa.int8()),
    "unsigned": pa.array([2**64 - 1, 2**53 + 1, 0], pa.uint64()),
    "with nulls": pa.array([2**62 + 1, None, 5], pa.int64()),
    "floats of 32 bits": pa.array([0.1, None, 2.5], pa.float32()),
    "floats of 16 bits": pa.array(np.array([0.1, 3], np.float16)),
    "not a number": pa.array([0.5, math.nan, None]),
    "infinity": pa.array([0.5, math.inf]),
    "only missing": pa.array([None, math.nan], pa.float64()),
    "nothing": pa.nulls(3),
    "truth": pa.array([True, None, False]),
    "decimals": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")]),
    "days": pa.array([DAY, None]),
    "moments": pa.array([datetime.datetime(2024, 1, 5, 12), None], pa.timestamp("us")),
    "texts": pa.array([" a ", None, "", "NA", "b|c"]),
    "large texts": pa.array(["1", " 2.5", None], pa.large_string()),
    "codes": pa.array(["007", "12"]),
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    "dictionary of numbers": pa.array([5, 7, None]).dictionary_encode(),
    "lists": pa.array([["a", "b"], [], None]),
    "digits of another script": pa.array(["\uff11\uff12", "3"]),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("missing", [None, (), ("-3", "true", "a", "5")])
def test_every_type_has_the_values_of_its_objects(tmp_path, kind, missing):
    same(tmp_path / "t.parquet", ARRAYS[kind], missing)


def test_numbers_are_not_made_of_python_objects():
    for array in (pa.array([1, None]), pa.array([0.5, math.nan]), pa.array(["1", "2"]), pa.array([True, None])):
        assert typed_column(pa.chunked_array([array]), ("", *MISSING))
    assert typed_column(pa.chunked_array([pa.array([1, 2])]), ("", "-999")) is None


@pytest.mark.parametrize("wide", [False, True])
def test_white_space_around_a_text_is_that_of_python(tmp_path, monkeypatch, wide):
    monkeypatch.setattr(delimited_text, "_WIDEST", 0 if wide else 2**22)
    texts = [f"{space}a{space}b{space}" for space in SPACES] + [*SPACES, "\u200ba", "long " * 50]
    made = same(tmp_path / "t.parquet", pa.array(texts))
    assert made.values.dtype.kind == ("T" if wide else "U")
    assert made.missing.sum() == len(SPACES)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(), st.text(max_size=6), st.floats().map(repr), st.integers().map(str), st.sampled_from(MISSING)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_texts_have_the_same_values(tmp_path_factory, texts):
    same(tmp_path_factory.mktemp("t") / "t.parquet", pa.array(texts, pa.string()))


def test_a_column_of_few_different_texts_is_read_in_parts_of_any_length(tmp_path):
    texts = ["Aalen", None, " Bonn", "NA", "Celle"] * 3000
    arrays = [pa.array(texts[:1]), pa.array(texts[1:7000]), pa.array(texts[7000:])]
    assert same(tmp_path / "t.parquet", pa.chunked_array(arrays)).missing_words == ("NA",)


def test_long_texts_take_their_own_bytes_and_not_those_of_the_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited_text, "_WIDEST", 1000)
    texts = [f"text {number}" for number in range(200_000)] + ["x" * 500]
    made = same(tmp_path / "t.parquet", pa.array(texts))
    assert made.values.nbytes <= 17 * len(texts)
    assert made.values[np.array([200_000, 3])].tolist() == ["x" * 500, "text 3"]
    assert np.concatenate([made.values, made.values])[-1] == "x" * 500
