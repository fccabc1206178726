"""What a column holds: numbers, text or labels, and what is refused."""

import json

import numpy as np
import pytest

from finetune.data.table_column import column_of
from finetune.data.table_files import read_table, table_of_columns
from finetune.data.table_head import MISSING
from finetune.errors import DataError


@pytest.mark.parametrize("value", ["1_000", "infinity", "1e999", "0x10", "12a", "1.000,5", "1,000.5"])
def test_what_is_no_number_in_a_table_is_text(tmp_path, value):
    (tmp_path / "a.tsv").write_text(f"a\tb\n1\tx\n{value}\ty\n")
    assert read_table(tmp_path / "a.tsv").column("a").kind == "text"


def test_whole_numbers_as_text_have_no_decimal_point(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,0.5\n20,2\n")
    table = read_table(tmp_path / "a.csv")
    assert table.column("a").texts().tolist() == ["1", "20"]
    assert table.column("b").texts().tolist() == ["0.5", "2"]


def test_values_of_other_kinds_in_json_become_text_and_lists_become_labels(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": true, "b": ["x", "y"]}\n\n{"a": false}\n')
    table = read_table(tmp_path / "a.jsonl")
    assert table.column("a").values.tolist() == ["true", "false"]
    assert table.column("b").values.tolist() == ["x|y", ""]
    assert table.places_of(np.array([1])) == "`a.jsonl:3`"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (["x", "y"], "x|y"),
        (("x", "y"), "x|y"),
        ({"y", "x"}, "x|y"),
        (np.array(["x", "y"], object), "x|y"),
        ([True, 2, None, float("nan")], "true|2"),
        ([], "|"),
        (np.array([]), "|"),
        (None, ""),
    ],
)
def test_lists_of_any_kind_are_labels_and_an_empty_one_has_none_of_them_and_is_not_missing(cell, text):
    column = table_of_columns({"tags": [cell, "z"]}, "t").column("tags")
    assert column.values.tolist() == [text, "z"]


def test_numbers_with_a_decimal_point_can_be_whole(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1.0,0.5\n20.0,2\n")
    table = read_table(tmp_path / "a.csv")
    assert (table.column("a").whole, table.column("b").whole) == (True, False)


@pytest.mark.parametrize("value", [{"age": 3}, [[1, 2], [3]], [{"a": 1}], [[]]])
def test_values_within_values_are_refused_where_they_are_named_and_only_there(tmp_path, value):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"user": each, "tags": ["x", "y"], "n": 1}) + "\n" for each in (None, value)))
    table = read_table(path)
    assert (table.column("n").values.tolist(), table.column("tags").values.tolist()) == ([1, 1], ["x|y"] * 2)
    with pytest.raises(DataError, match=r"`user` holds values within values, such as `.*`\. Write a column for each"):
        table.column("user")
    with pytest.raises(DataError, match=r"has no column `users`\. Its columns are `user`, `tags`, `n`"):
        table.column("users")


def test_bytes_are_no_value_of_a_cell():
    with pytest.raises(DataError, match=r"`photo` holds bytes, such as `b'abc'`\."):
        table_of_columns({"photo": [b"abc"], "n": [1]}, "t").column("photo")


@pytest.mark.parametrize(
    ("cells", "decimal", "values", "has_commas"),
    [
        (["3,14", "2", "NA"], "auto", [3.14, 2, None], True),
        (["3.14", "2"], "auto", [3.14, 2], False),
        (["1", "2"], ",", [1, 2], False),
        (["1,0", "2,0"], ",", [1, 2], True),
        (["3,14", "2.5"], "auto", ["3,14", "2.5"], False),  # which of the two is it?
        (["1.234,56", "2,5"], "auto", ["1.234,56", "2,5"], False),  # thousands are not guessed
        (["3,14"], ".", ["3,14"], False),
        (["3.14"], ",", ["3.14"], False),
        (["007,5"], "auto", ["007,5"], False),
        (["1,5 kg", "2,5"], "auto", ["1,5 kg", "2,5"], False),
    ],
)
def test_a_column_has_a_decimal_comma_where_all_of_its_numbers_have_it_or_are_whole(cells, decimal, values, has_commas):
    column = column_of("x", cells, MISSING, decimal)
    assert column.has_commas is has_commas
    assert [None if value != value else value for value in column.values.tolist()] == values
    assert column.whole is (cells in (["1", "2"], ["1,0", "2,0"]))
