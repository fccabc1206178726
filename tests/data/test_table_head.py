"""The names of the columns of a table, without its rows."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from finetune.data.table_head import is_unnamed, read_head, unknown_column, unnamed_warning


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", '\ufeffage, town\n1,"a, b"\n2,c\n'),
        ("t.tsv", "age\ttown\n1\ta, b\n2\tc\n"),
        ("t.jsonl", '{"age": 1}\n\n{"age": 2, "town": "c"}\n'),
    ],
)
def test_the_names_of_the_columns_of_text_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(read_head(tmp_path / name) or ()) == ["age", "town"]


def test_the_names_of_the_columns_of_parquet_and_feather(tmp_path):
    table = pa.table({"age": np.arange(3), "town": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    assert [list(read_head(tmp_path / f"t.{ending}") or ()) for ending in ("parquet", "feather")] == [
        ["age", "town"]
    ] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b""),
        ("t.csv", b"\xff\xfea\x00"),
        ("t.jsonl", b"[1, 2]\n3\n"),
        ("t.jsonl", b'{"a": 1}\n' * 2000),  # a later line might have another key
        ("t.parquet", b"PAR1"),
        ("t.feather", b"nonsense"),
        ("t.xlsx", b"PK"),
    ],
)
def test_what_cannot_be_read_is_left_to_the_reader_of_the_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_head(tmp_path / name) is None
    assert read_head(tmp_path / "none.csv") is None


def test_a_misspelt_column_is_told_with_the_nearest(tmp_path):
    said = unknown_column(["twon"], tmp_path / "t.csv", {"age": ["1"], "town": ["A"]})
    assert said == f"`{tmp_path / 't.csv'}` has no column `twon`. Its columns are `age`, `town`. Did you mean `town`?"


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({"5.1": ["4.9"], "setosa": ["setosa", "virginica"]}, "`5.1`, `setosa`"),
        ({"a.png": ["b.png"], "cat": ["dog", "cat"]}, "`cat`"),
    ],
)
def test_a_first_line_of_values_is_told(tmp_path, columns, values):
    said = unknown_column(["kind"], tmp_path / "t.csv", columns)
    assert said.endswith(f"Its first line seems to hold values ({values}): write a line of names above it.")


def test_another_separator_is_told(tmp_path):
    said = unknown_column(["a"], tmp_path / "t.csv", {"a;b": []})
    assert "seems to have a semicolon between its values, but not the same number in every row" in said
    assert 'its first line is `a;b`. Set `data.delimiter: ";"`, or name it by what it is' in said
    assert 'Set `data.delimiter: "tab"`' in unknown_column(["a"], tmp_path / "t.csv", {"a\tb": []})


def test_the_head_is_split_as_the_rows_are(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1,5;x\n")
    assert list(read_head(tmp_path / "t.csv") or ()) == ["a", "b"]
    assert list(read_head(tmp_path / "t.csv", "|") or ()) == ["a;b"]
    (tmp_path / "t.csv").write_text('a;b\n"1;x\n')
    assert list(read_head(tmp_path / "t.csv", quotes=False) or ()) == ["a", "b"]


def test_an_index_of_pandas_is_known_by_its_name():
    names = ["Unnamed: 0", "Unnamed: 12.1", "__index_level_0__", "Unnamed", "Unnamed: x", "index"]
    assert list(filter(is_unnamed, names)) == names[:3]
    assert unnamed_warning(["a"]) == ()
    assert unnamed_warning(["a", "__index_level_0__"])[0].startswith(
        "`__index_level_0__` has no name in the first line"
    )
