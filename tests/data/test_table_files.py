"""Tables: the same values from every format, and what is wrong with a file said with its line."""

import json
from functools import partial

import numpy as np
import pyarrow
import pytest
from pyarrow import feather, parquet

from finetune.data.table_column import Column
from finetune.data.table_files import Columns, Table, read_table
from finetune.data.table_head import read_head
from finetune.data.table_places import places_in
from finetune.errors import DataError, PartError

ROWS = [
    {"name": "Ann", "age": 31, "height": 1.5, "code": "007", "note": 'says "hi", twice'},
    {"name": "Bo", "age": 4, "height": None, "code": "12", "note": "two\nlines"},
    {"name": "", "age": -5, "height": 1e-3, "code": "3", "note": "Grüße"},
]


def write_delimited(path, delimiter):
    lines = [delimiter.join(ROWS[0])]
    for row in ROWS:
        texts = ["" if value is None else str(value) for value in row.values()]
        lines.append(delimiter.join(f'"{text.replace(chr(34), chr(34) * 2)}"' for text in texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(path):
    if path.suffix in (".csv", ".tsv"):
        write_delimited(path, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        table = pyarrow.Table.from_pylist(ROWS)
        (parquet.write_table if path.suffix == ".parquet" else feather.write_feather)(table, path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "feather"])
def test_every_format_gives_the_same_values(tmp_path, ending):
    table = read_table(write(tmp_path / f"people.{ending}"))
    assert list(table.columns) == ["name", "age", "height", "code", "note"]
    assert len(table) == 3
    kinds = {name: (column.kind, column.whole) for name, column in table.columns.items()}
    assert kinds == {
        "name": ("text", False),
        "age": ("number", True),
        "height": ("number", False),
        "code": ("text", False),  # a code that begins with 0 is no number
        "note": ("text", False),
    }
    assert table.column("name").values.tolist() == ["Ann", "Bo", ""]
    assert table.column("age").values.tolist() == [31, 4, -5]
    np.testing.assert_array_equal(table.column("height").values, [1.5, np.nan, 1e-3])
    assert table.column("note").values.tolist() == ['says "hi", twice', "two\nlines", "Grüße"]


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "null", "None", "N/A"])
def test_the_usual_signs_for_a_missing_value_are_known(tmp_path, missing):
    (tmp_path / "a.csv").write_text(f"a,b\n1,x\n{missing},{missing}\n")
    table = read_table(tmp_path / "a.csv")
    assert table.column("a").missing.tolist() == table.column("b").missing.tolist() == [False, True]
    assert table.column("a").kind == "number"
    assert not table.column("a").whole


def test_places_are_lines_of_the_file_and_five_are_shown(tmp_path):
    (tmp_path / "a.csv").write_text('a\n"two\nlines"\n\n' + "x\n" * 9)
    table = read_table(tmp_path / "a.csv")
    assert table.places_of(np.array([0, 1])) == "`a.csv:3`, `a.csv:5`"
    assert table.places_of(np.arange(8)).endswith("`a.csv:8` and 3 more")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            b"a,b\n1,2\n3\n",
            "for each of the 2 columns. `a.csv:3` has 1. Put text that contains a comma in double",
        ),
        ("a.csv", b"a,b\n", "A table needs rows below the names of its columns"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,a\n1,2\n", "these occur twice: `a`. The first line is `a,a`"),
        ("a.csv", b"a,b\n1,x\n2,\xff\n", "Tables are text in UTF-8. `a.csv:3` holds the byte 0xff at place 3"),
        ("a.csv", b'a,b\n1,"x\n', "Reading `a.csv:2` failed: unexpected end of data"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "Every line must be JSON. `a.jsonl:2` is not"),
        (
            "a.jsonl",
            b"[1, 2]\n",
            'must be a JSON object such as `{"text": "good", "label": 1}`. `a.jsonl:1` is a `list`',
        ),
        ("a.parquet", b"not parquet", "cannot be read as a table"),
        ("a.xlsx", b"PK", "A table is a file that ends in one of `.csv`"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert said in str(caught.value)


def test_a_missing_file_and_a_missing_column_are_answered_with_the_nearest(tmp_path):
    table = read_table(write(tmp_path / "people.csv"))
    with pytest.raises(DataError, match=r"holds `people.csv`\. Did you mean `people\.csv`"):
        read_table(tmp_path / "poeple.csv")
    with pytest.raises(DataError, match=r"no column `agee`\. Its columns are .* Did you mean `age`"):
        table.column("agee")


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert list(read_table(tmp_path / "a.csv").columns) == ["a", "b"]


def test_chosen_rows_keep_their_places(tmp_path):
    table = read_table(write(tmp_path / "people.csv")).select(np.array([2, 0]))
    assert table.column("age").values.tolist() == [-5, 31]
    assert table.places_of(np.array([1])) == "`people.csv:2`"


def test_signs_for_a_missing_value_are_known_with_spaces_around_them_and_in_json(tmp_path):
    (tmp_path / "a.csv").write_text("a, b\n1, 2\n2, NA\n")
    assert read_table(tmp_path / "a.csv").column("b").missing.tolist() == [False, True]
    (tmp_path / "a.jsonl").write_text('{"a": 1.5}\n{"a": NaN}\n')
    assert read_table(tmp_path / "a.jsonl").column("a").kind == "number"


def test_a_nul_is_refused_with_its_line_and_makes_no_category_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"1,2.5\n" * 200 + b"1,\0\0\n")
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "t.csv")
    assert str(error.value) == (
        "Tables are text, whose values do not end in NUL characters. `t.csv:202` has some after `1,`. If the file is damaged, write it again; "
        "otherwise remove them: `tr -d '\\0' < t.csv > clean.csv`."
    )


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"A table is a file\. `.*photos` is a folder\. Name a file in it"):
        read_table(tmp_path / "photos")


def test_a_few_words_among_numbers_are_named_with_their_lines(tmp_path):
    rows = [f"{number}.5,{number:05d},x{number}" for number in range(19)]
    (tmp_path / "t.csv").write_text("a,zip,text\n" + "\n".join([*rows, "?,00020,y"]) + "\n")
    table = read_table(tmp_path / "t.csv")
    with pytest.raises(DataError) as error:
        table.check_numbers(["a"], {})
    assert str(error.value) == (
        "`a` has numbers in 19 rows, and other text in 1: `?`, at `t.csv:21`. Correct them; or, where such "
        "text stands for a missing number, leave its cell empty or add it to `data.missing`; or set `types: {a: category}`."
    )
    table.check_numbers(["a"], {"a": "category"})
    (tmp_path / "inf.csv").write_text("\n".join(["a", *map(str, range(20)), "inf"]))
    with pytest.raises(DataError, match=r"`a` has numbers in 20 rows, and other text in 1: `inf`, at `inf\.csv:22`"):
        read_table(tmp_path / "inf.csv").check_numbers(["a"], {})
    table.check_numbers(["zip", "text"], {})  # codes with zeros in front, and text, are no numbers


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_table_with_another_separator_is_read(tmp_path, mark):
    (tmp_path / "t.csv").write_text(f"a{mark}b\n1{mark}x, y\n2{mark}z\n")
    table = read_table(tmp_path / "t.csv")
    assert (table.column("a").values.tolist(), table.column("b").values.tolist()) == ([1, 2], ["x, y", "z"])
    assert (table.delimiter, table.select(np.array([1])).delimiter) == (mark, mark)
    (tmp_path / "t.csv").write_text(f"a{mark}b\n1{mark}2\n3\n")
    with pytest.raises(DataError, match=r"but not the same number in every row: its first line is `a.+b`\. Set `data"):
        read_table(tmp_path / "t.csv").column("a")
    with pytest.raises(DataError, match=r"each of the 2 columns\. `t\.csv:3` has 1\. Put text that contains a "):
        read_table(tmp_path / "t.csv", delimiter="tab" if mark == "\t" else mark)


@pytest.mark.parametrize("with_arrow", [True, False])
@pytest.mark.parametrize("mark", [",", " ", "\t"])
def test_names_of_rows_below_a_shorter_head_are_a_column_without_a_name(tmp_path, monkeypatch, mark, with_arrow):
    if not with_arrow:
        monkeypatch.setattr("finetune.data.table_files.read_plain_csv", lambda *_, **__: None)
    rows = [("price", "code"), ("2", "1.5", "01"), ("7", "NA", "02")]  # R keeps the numbers of rows it has chosen from
    text = "\n".join(mark.join(row) for row in rows)
    (tmp_path / "t.csv").write_text(text)
    table = read_table(tmp_path / "t.csv")
    assert list(table.columns) == ["Unnamed: 0", "price", "code"] == list(read_head(tmp_path / "t.csv") or ())
    np.testing.assert_array_equal(table.column("price").values, [1.5, np.nan])
    assert table.column("code").values.tolist() == ["01", "02"]
    assert table.column("Unnamed: 0").values.tolist() == [2, 7]
    (tmp_path / "t.csv").write_text(f"{text}\n8{mark}1\n")
    with pytest.raises(DataError, match=r"each of the 2 columns\. `t\.csv:2` has 3"):
        read_table(tmp_path / "t.csv", delimiter={"\t": "tab", " ": "space"}.get(mark, mark)).column("price")


def test_decimal_commas_and_points_in_a_column_are_refused_with_both(tmp_path):
    rows = "\n".join([*(f"{n},5" for n in range(12)), "1.234"])
    (tmp_path / "t.tsv").write_text(f"price\n{rows}\n")
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "t.tsv").check_numbers(["price"], {})
    assert str(error.value) == (
        "Numbers of a column are written in a single way. `price` has `1.234`, and `0,5`. Correct them, without separators "
        "of thousands, or set `types: {price: category}`."
    )
    (tmp_path / "t.csv").write_text("price\n1.5\n")
    with pytest.raises(DataError, match=r"`price` has `1\.5`, and `data\.decimal` is `,`"):
        read_table(tmp_path / "t.csv", decimal=",").check_numbers(["price"], {})
    (tmp_path / "t.tsv").write_text(f"price\n{rows[:-5]}?\n")
    with pytest.raises(DataError, match=r"`price` has numbers in 12 rows, and other text in 1: `\?`, at `t\.tsv:14`"):
        read_table(tmp_path / "t.tsv").check_numbers(["price"], {})


def test_an_open_quote_is_named_with_its_line(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,2\n"3"x,4\n')
    with pytest.raises(DataError, match=r"Reading `t\.csv:3` failed: .*the quote twice"):
        read_table(tmp_path / "t.csv")


def test_json_that_is_nested_too_deep_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1, "label": 1}\n{"a": ' + "[" * 100_000 + "]" * 100_000 + ', "label": 1}\n')
    with pytest.raises(DataError, match=r"Every line must be JSON. `t.jsonl:2` is not: maximum recursion depth"):
        read_table(path)


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (",a,b", ["Unnamed: 0", "a", "b"]),
        ('"",a,', ["Unnamed: 0", "a", "Unnamed: 2"]),
        (",Unnamed: 0,a", ["Unnamed: 0.1", "Unnamed: 0", "a"]),  # written by pandas twice
    ],
)
def test_columns_without_a_name_are_called_as_pandas_calls_them(tmp_path, head, names):
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\n0,1,x\n1,2,y\n")
    assert list(read_table(path).columns) == list(read_head(path) or ()) == names
    with path.open("a") as file:
        file.write('2,3,"z\n"\n')  # which Python's reader reads
    assert list(read_table(path).columns) == names


def test_names_that_occur_twice_stay_refused_beside_columns_without_a_name(tmp_path):
    (tmp_path / "t.csv").write_text(",a,a\n0,1,2\n")
    with pytest.raises(DataError, match=r"these occur twice: `a`\. The first line is `Unnamed: 0,a,a`"):
        read_table(tmp_path / "t.csv")


def test_columns_that_are_larger_than_what_is_kept_are_made_again_but_for_the_latest():
    made = []

    def make(name):
        made.append(name)
        return Column(name, "number", np.zeros(100))

    columns = Columns({name: partial(make, name) for name in "abcd"}, most_kept=1600)
    assert "a" in columns
    assert "e" not in columns
    assert not made
    for name in "aabbccddcab":
        assert columns[name].name == name
    assert "".join(made) == "abcdc"
    assert columns.once("a") is columns["a"]
    assert columns.once("d").name == "d"
    assert "".join(made) == "abcdcd"


def test_columns_are_checked_when_they_are_reached(tmp_path):
    rows = "".join(f"{n},{n if n != 7 else 'x'},{n}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(f"a,b,c\n{rows}")
    table = read_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match="has no column `bb`"):
        table.checked_columns(["a", "bb"], {})
    columns = table.checked_columns(["a", "b", "c"], {})
    assert (len(columns), columns[0].name, columns[1:].names) == (3, "a", ["b", "c"])
    with pytest.raises(DataError, match=r"`b` has numbers in 19 rows, and other text in 1: `x`, at `t\.csv:9`"):
        list(columns)
    assert [column.kind for column in table.checked_columns(["a", "b"], {"b": "category"})] == ["number", "text"]


def test_a_column_that_is_not_there_is_told_without_reading_those_that_are(tmp_path):
    made = []
    columns = Columns({"aged": lambda: made.append("aged")})
    with pytest.raises(PartError, match=r"has no column `age`\. Its columns are `aged`\. Did you mean `aged`\?"):
        Table(tmp_path / "t.parquet", columns, places_in("t.parquet", np.arange(1, 3))).column("age")
    assert not made
