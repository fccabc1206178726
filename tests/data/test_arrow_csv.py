import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import arrow_csv, table_files
from finetune.data.arrow_csv import read_plain_csv
from finetune.data.table_files import MISSING, read_table
from finetune.errors import DataError

PIECES = [
    "a",
    '"',
    '""',
    '"a,b"',
    ",",
    "\t",
    "\n",
    "\r\n",
    "\r",
    " ",
    "0",
    "1",
    "7",
    ".",
    "-",
    "+",
    "e",
    "1.5",
    "1,5",
    ";",
    "|",
    "007",
    "1_0",
]
PIECES += [
    "NA",
    "nan",
    "inf",
    "Infinity",
    "1e400",
    "-0",
    "0x1",
    "é",
    "\ufeff",
    "\u00a0",
    "\u2028",
    "\x0b",
    "\x1c",
    "\0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def both(path, **options):
    """Returns the table as pyarrow reads it, and as Python's own reader does; `None` for a refusal."""
    tables = []
    for plain in (read_plain_csv, lambda *_, **__: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(table_files, "read_plain_csv", plain)
            try:
                tables.append(read_table(path, **options))
            except DataError as error:
                tables.append(str(error))
    return tables


def same(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one.places == other.places and all(
        (a.name, a.kind, a.whole, a.has_commas, a.values.dtype)
        == (b.name, b.kind, b.whole, b.has_commas, b.values.dtype)
        and np.array_equal(a.values, b.values, equal_nan=a.kind == "number")
        for a, b in zip(one.columns.values(), other.columns.values(), strict=True)
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.sampled_from(PIECES), max_size=3), min_size=2, max_size=2), min_size=1, max_size=5),
    st.sampled_from([",", "\t", ";", "|"]),
    st.booleans(),
)
def test_pyarrow_and_python_read_the_same_table_or_refuse_it_in_the_same_words(folder, rows, delimiter, ends):
    path = folder / ("t.tsv" if delimiter == "\t" else "t.csv")
    lines = [delimiter.join("".join(cell) for cell in row) for row in rows]
    path.write_bytes((f"x{delimiter}y\n" + "\n".join(lines) + ("\n" if ends else "")).encode())
    assert same(*both(path))


def test_a_plain_table_is_read_by_pyarrow(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffa,b,c\n1,"x, ""y""",007\n NA ,z,8\r\n', encoding="utf-8")
    rows, columns = read_plain_csv(tmp_path / "t.csv", ",", ["a", "b", "c"], MISSING)
    assert rows == 2
    assert {name: column.is_number for name, column in columns.items()} == {"a": True, "b": False, "c": False}
    assert columns["b"].make()[0].tolist() == ['x, "y"', "z"]
    assert columns["c"].make()[0].tolist() == ["007", "8"]
    assert np.array_equal(columns["a"].make()[0], [1, np.nan], equal_nan=True)
    assert columns["a"].make()[1] == ("NA",)
    assert same(*both(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "body", ["1,2,3\n", '"a\nb",2\n', 'a"b,2\n', "1,2\n\n3,4\n", "1\r2,3\n", "\u00a01,2\n", "1,\udcff\n"]
)
def test_what_the_two_might_see_differently_is_left_to_python(tmp_path, body):
    (tmp_path / "t.csv").write_bytes(f"x,y\n{body}".encode(errors="surrogateescape"))
    assert read_plain_csv(tmp_path / "t.csv", ",", ["x", "y"], MISSING) is None


def test_without_pyarrow_nothing_is_read(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("x\n1\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert read_plain_csv(tmp_path / "t.csv", ",", ["x"], MISSING) is None
    assert read_table(tmp_path / "t.csv").column("x").values.tolist() == [1]


@pytest.mark.parametrize("missing", [None, [], ["x"], ["2"]])
def test_both_readers_see_the_same_missing_words(tmp_path, missing):
    (tmp_path / "t.csv").write_text("a,b\nNA,x\n2,None\n,y\n")
    (tmp_path / "t.jsonl").write_text('{"a": "NA", "b": "x"}\n{"a": "2", "b": "None"}\n{"b": "y"}\n')
    with_arrow, by_python = (read_table(tmp_path / name, missing) for name in ("t.csv", "t.jsonl"))
    for name in "ab":
        first, second = with_arrow.column(name), by_python.column(name)
        assert (first.kind, first.missing_words) == (second.kind, second.missing_words)
        assert first.texts().tolist() == second.texts().tolist()


CELLS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(-999, 999, places=2).map(lambda value: str(value).replace(".", ",")),
    st.sampled_from(
        [
            "",
            "NA",
            "-0",
            "1,5",
            ",5",
            "5,",
            "+5",
            ".5",
            "5.",
            "1e-05",
            "007",
            "-01",
            " 02",
            "inf",
            "x 05",
            "2024-01-05",
            "a",
        ]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=12), st.integers(1, 60))
def test_numbers_that_are_read_at_once_are_those_of_the_cells(folder, rows, head):
    path = folder / "n.tsv"
    path.write_text("x\ty\n" + "\n".join("\t".join(row) for row in rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_csv, "_HEAD", head)  # what comes behind the head may be something else
        assert same(*both(path))


def test_plain_numbers_never_become_text(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,b\n1,x\n,y\n2.5,z\n")
    read, original = [], arrow_csv._read

    def noted(data, delimiter, types):
        read.append(types)
        return original(data, delimiter, types)

    monkeypatch.setattr(arrow_csv, "_read", noted)
    assert same(*both(tmp_path / "t.csv"))
    assert [str(kind) for kind in read[-1].values()] == ["double", "string"]


@pytest.mark.parametrize("odd", ["007,8", '"1",2', "1\u2028,2", "+01,2", "\n1,2", "1,2\r"])
def test_a_table_that_begins_plainly_is_not_read_as_numbers_for_what_comes_later(tmp_path, monkeypatch, odd):
    """What was read of it beside the look at its bytes is thrown away."""
    monkeypatch.setattr(arrow_csv, "_HEAD", 64)
    path = tmp_path / "t.csv"
    path.write_bytes(("x,y\n" + "1,2\n" * 40 + f"{odd}\n" + "3,4\n").encode())
    assert same(*both(path))


def test_a_column_is_made_when_it_is_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")
    table = read_table(tmp_path / "t.csv")
    assert table.columns._kept == {}
    assert table.column("b") is table.column("b")
    assert list(table.columns._kept) == ["b"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=12),
    st.sampled_from([";", "|", "\t"]),
    st.sampled_from(["auto", ".", ","]),
)
def test_both_readers_see_the_same_numbers_whatever_begins_their_decimals(folder, rows, mark, decimal):
    path = folder / "d.csv"
    path.write_text(f"x{mark}y\n" + "\n".join(mark.join(row) for row in rows) + "\n")
    assert same(*both(path, decimal=decimal))


def test_decimal_commas_are_read_by_pyarrow(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;c\n1,5;x;0,5\n-2;y,z;1\n")
    _, columns = read_plain_csv(tmp_path / "t.csv", ";", ["a", "b", "c"], MISSING, decimal="auto")
    assert [(column.is_number, column.has_commas) for column in columns.values()] == [
        (True, True),
        (False, False),
        (True, True),
    ]
    assert columns["a"].make()[0].tolist() == [1.5, -2]
