"""Several files as a table: as if their rows were in one, and told where they do not belong together."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune.data.several_tables import join_tables, read_tables
from finetune.data.table_files import read_table
from finetune.errors import DataError


@pytest.fixture
def write(tmp_path):
    def of(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return of


def test_rows_of_several_files_are_those_of_a_single_file_in_every_format(tmp_path):
    whole = {"n": [1.5, None, 3, 4, -5, 6], "town": ["Ulm", "Bonn", "", "Ulm", "Aalen", "b"], "k": [1, 2, 3, 4, 5, 6]}
    expected = pa.table(whole)
    parquet.write_table(expected, tmp_path / "whole.parquet")
    reference = read_table(tmp_path / "whole.parquet")
    parts = [expected.slice(0, 1), expected.slice(1, 3), expected.slice(4)]
    paths = {"parquet": [], "jsonl": [], "csv": []}
    for number, part in enumerate(parts):
        paths["parquet"].append(tmp_path / f"part-{number}.parquet")
        parquet.write_table(part.select(["k", "town", "n"]) if number == 1 else part, paths["parquet"][-1])
        paths["jsonl"].append(tmp_path / f"part-{number}.jsonl")
        paths["jsonl"][-1].write_text("".join(f"{json.dumps(row)}\n" for row in part.to_pylist()))
        paths["csv"].append(tmp_path / f"part-{number}.csv")
        lines = ["n,town,k", *(",".join("" if v is None else str(v) for v in row.values()) for row in part.to_pylist())]
        paths["csv"][-1].write_text("\n".join(lines) + "\n")
    for of in (*paths.values(), [paths["csv"][0], paths["parquet"][1], paths["jsonl"][2]]):
        table = read_tables(of)
        assert (len(table), list(table.columns), table.paths) == (6, ["n", "town", "k"], tuple(of))
        for name in whole:
            column, other = table.column(name), reference.column(name)
            np.testing.assert_array_equal(column.values, other.values)
            assert (column.kind, column.whole) == (other.kind, other.whole)
    assert table.places_of(np.array([0, 1, 5])) == "`part-0.csv:2`, `part-1.parquet:1`, `part-2.jsonl:2`"


def test_files_of_the_same_name_are_told_apart_by_their_folders(write):
    table = read_tables([write("2025/jan.csv", "a\n1\n"), write("2026/jan.csv", "a\n2\n")])
    assert table.places_of(np.array([0, 1])) == "`2025/jan.csv:2`, `2026/jan.csv:2`"


def test_other_columns_are_told_with_both_files(write):
    files = [write("a.csv", "x,town\n1,u\n"), write("b.csv", "x,twon,z\n1,u,3\n")]
    with pytest.raises(
        DataError,
        match=r"Files of a table have the same columns\. `.*b\.csv` lacks `town` and has `twon`, `z` in addition, unlike "
        r"`.*a\.csv`\. Did you mean `twon`\? Correct it",
    ):
        read_tables(files)
    files = [files[0], write("c.csv", "x,town,z\n1,u,3\n")]
    with pytest.raises(DataError, match=r"`.*c\.csv` has `z` in addition, unlike `.*a\.csv`\. Correct it"):
        read_tables(files)


def test_a_column_of_numbers_in_a_file_and_of_words_in_another_is_told_with_both_when_it_is_asked_for(write):
    table = read_tables([write("a.csv", "x,y\n1,2\n2,3\n"), write("b.csv", "x,y\nfew,4\n")])
    assert table.column("y").values.tolist() == [2, 3, 4]
    with pytest.raises(
        DataError,
        match=r"`x` holds numbers in `.*a\.csv`, and text in `.*b\.csv`: `few`\. Correct one of them, or set `types: "
        r"\{x: category\}`",
    ):
        table.column("x")
    written = read_tables(list(table.paths), types={"x": "category"})
    assert written.column("x").values.tolist() == ["1", "2", "few"]


def test_a_column_that_is_a_mixture_in_itself_is_text_though_a_file_has_numbers_alone(write):
    table = read_tables([write("a.csv", "ticket\n12\n7\n"), write("b.csv", "ticket\n007\nA 5\n")])
    assert table.column("ticket").values.tolist() == ["12", "7", "007", "A 5"]


def test_a_file_in_which_a_column_is_empty_says_nothing_about_its_type(write):
    table = read_tables([write("a.csv", "x,y\n,1\nNA,2\n"), write("b.csv", "x,y\n1.5,3\n")])
    np.testing.assert_array_equal(table.column("x").values, [np.nan, np.nan, 1.5])
    assert (table.column("x").kind, table.column("x").missing_words) == ("number", ("NA",))


def test_what_all_lines_of_a_file_of_json_leave_out_is_missing(write):
    table = read_tables([write("a.jsonl", '{"x": 1}\n'), write("b.jsonl", '{"x": 2, "y": "u"}\n{"y": "v"}\n')])
    np.testing.assert_array_equal(table.column("x").values, [1, 2, np.nan])
    assert table.column("y").values.tolist() == ["", "u", "v"]


def test_tables_of_splits_are_joined_by_the_columns_of_the_first(write):
    a, b = read_table(write("a.csv", "x,y\n1,a\n2,b\n")), read_table(write("b.csv", "y,x,z\nc,3,1\n"))
    joined = join_tables([a, b])
    assert (joined.column("x").values.tolist(), joined.column("y").values.tolist()) == ([1, 2, 3], ["a", "b", "c"])
    assert joined.places_of(np.array([1, 2])) == "`a.csv:3`, `b.csv:2`"
    with pytest.raises(DataError, match=r"`.*a\.csv` has no column `z`"):
        join_tables([b, a]).column("z")


def test_tables_with_decimal_commas_and_points_are_joined(write):
    column = read_tables([write("a.csv", "x;y\n1,5;a\n"), write("b.csv", "y,x\nb,2.5\n")]).column("x")
    assert (column.values.tolist(), column.has_commas) == ([1.5, 2.5], True)
