import gzip
import io

import numpy as np
import pytest

from finetune.data.separators import TextForm
from finetune.errors import DataError
from finetune.inference.raw_rows import raw_rows_of, read_raw_rows


def read(*inputs, **options):
    """Returns places, and columns as lists, of all rows in chunks."""
    return [
        (list(chunk.places), {name: list(values) for name, values in chunk.columns.items()})
        for chunk in read_raw_rows(inputs, **options)
    ]


def test_tables_are_read_some_rows_at_a_time_with_the_line_of_each(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,"x\ny"\n2,z\n\n3,\n')
    assert read(tmp_path / "t.csv", size=2) == [
        (["t.csv:3", "t.csv:4"], {"a": ["1", "2"], "b": ["x\ny", "z"]}),
        (["t.csv:6"], {"a": ["3"], "b": [""]}),
    ]
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{"b": [1, 2]}\n')
    assert read(tmp_path / "t.jsonl") == [(["t.jsonl:1", "t.jsonl:3"], {"a": [1, None], "b": [None, [1, 2]]})]


def test_columnar_files_have_the_number_of_each_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", size=2) == [
        (["t.parquet:1", "t.parquet:2"], {"a": [1, 2]}),
        (["t.parquet:3"], {"a": [3]}),
    ]


def test_files_and_folders_share_chunks_and_hidden_files_are_left_out(tmp_path):
    for name in ("b/2.png", "b/.hidden.png", "b/notes.txt", "b/c/1.JPG", "a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [tmp_path / "a.wav", tmp_path / "b/2.png", tmp_path / "b/c/1.JPG"]
    assert read(tmp_path / "a.wav", tmp_path / "b", size=4) == [([*map(str, paths)], {"": paths})]
    assert [len(places) for places, _ in read(tmp_path / "a.wav", tmp_path / "b", size=2)] == [2, 1]


def test_standard_input_is_a_text_a_line_or_objects():
    assert read("-", lines=io.StringIO("good\n\nbad film\n")) == [
        (["standard input:1", "standard input:3"], {"": ["good", "bad film"]})
    ]
    assert read("-", lines=io.StringIO('{"a": 1}\n{"a": 2}\n')) == [
        (["standard input:1", "standard input:2"], {"a": [1, 2]})
    ]
    assert read("-", lines=io.StringIO("\n")) == []
    with pytest.raises(DataError, match="`standard input:2` is not"):
        read("-", lines=io.StringIO('{"a": 1}\nplain\n'))


@pytest.mark.parametrize("line", ["caf\udce9 good\n", '{"text": "caf\udce9"}\n'])
def test_a_byte_of_standard_input_that_is_not_utf8_has_its_line(line):
    with pytest.raises(DataError, match=r"Text must be UTF-8. `standard input:2` has the byte 0xe9 after `.*caf`"):
        read("-", lines=io.StringIO(line.replace("caf\udce9", "tea") + line))


def test_arrays_are_those_of_the_inputs_or_all_that_the_file_holds(tmp_path):
    np.savez(tmp_path / "x.npz", **{"x_test/a": np.arange(3), "x_test/b": np.ones((3, 2)), "y_test": np.arange(3)})
    [(places, columns)] = read(tmp_path / "x.npz")
    assert (places, list(columns), columns["a"]) == (["x.npz:0", "x.npz:1", "x.npz:2"], ["a", "b"], [0, 1, 2])
    np.save(tmp_path / "x.npy", np.arange(5))
    assert [columns for _, columns in read(tmp_path / "x.npy", size=4)] == [{"": [0, 1, 2, 3]}, {"": [4]}]
    np.savez(tmp_path / "u.npz", a=np.arange(3), b=np.arange(2))
    with pytest.raises(DataError, match="same number of rows"):
        read(tmp_path / "u.npz")
    (tmp_path / "p.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(DataError, match=r"must be a readable `\.npy` file"):
        read(tmp_path / "p.npy")


def test_what_is_no_source_of_rows_is_refused_before_any_row_is_read(tmp_path):
    (tmp_path / "a.docx").touch()
    with pytest.raises(DataError, match=r"by their endings: `\.jpg`.*Received: `.*a\.docx`"):
        read(tmp_path / "a.docx")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none.csv")
    (tmp_path / "u.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="a name of its own"):
        read(tmp_path / "u.csv")
    (tmp_path / "s.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match=r"`s\.csv:3` has 1"):
        read(tmp_path / "s.csv")


class Frame(dict):
    """What a data frame has."""

    columns = property(lambda self: list(self))

    def to_dict(self):
        return dict(self)


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        ("good", {"": ["good"]}),
        (["good", "bad"], {"": ["good", "bad"]}),
        ({"a": [1, 2]}, {"a": [1, 2]}),
        (Frame(a=(1, 2)), {"a": [1, 2]}),
        ([{"a": 1}, {"b": 2}], {"a": [1, None], "b": [None, 2]}),
        (b"bytes of a file", {"": [b"bytes of a file"]}),
    ],
)
def test_values_in_python_become_rows(values, columns):
    [chunk] = raw_rows_of(values, read=read_raw_rows)
    assert {name: list(column) for name, column in chunk.columns.items()} == columns
    assert chunk.places[0] == "row 0"


def test_paths_in_python_are_read_and_columns_of_other_lengths_refused(tmp_path):
    (tmp_path / "a.png").touch()
    for values in (tmp_path / "a.png", [tmp_path / "a.png"], tmp_path):
        assert [chunk.places for chunk in raw_rows_of(values, read=read_raw_rows)] == [[str(tmp_path / "a.png")]]
    with pytest.raises(DataError, match="same number of rows"):
        list(raw_rows_of({"a": [1], "b": []}, read=read_raw_rows))
    assert list(raw_rows_of([], read=read_raw_rows)) == []


def test_columns_without_a_name_have_those_of_training(tmp_path):
    (tmp_path / "t.csv").write_text(",a,\n0,1,\n")
    assert read(tmp_path / "t.csv") == [(["t.csv:2"], {"Unnamed: 0": ["0"], "a": ["1"], "Unnamed: 2": [""]})]
    (tmp_path / "t.csv").write_text("a b\n7 1 x\n")
    assert read(tmp_path / "t.csv", form=TextForm(found="space")) == [
        (["t.csv:2"], {"Unnamed: 0": ["7"], "a": ["1"], "b": ["x"]})
    ]


def test_rows_are_split_and_numbers_written_as_those_of_training(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n 1,5;x,5\n2;y\n")
    form = TextForm(found=";", commas=("a",))
    assert read(tmp_path / "t.csv", form=form)[0][1] == {"a": [" 1.5", "2"], "b": ["x,5", "y"]}
    (tmp_path / "t.csv").write_text("a,b\n2.5,y\n")
    assert read(tmp_path / "t.csv", form=form)[0][1] == {"a": ["2.5"], "b": ["y"]}
    (tmp_path / "u.csv").write_text("a,b\n2|5,y\n")
    with pytest.raises(
        DataError, match=r"each of the 1 columns\. `u\.csv:2` has 2\. Put text with a vertical bar in it"
    ):
        read(tmp_path / "u.csv", form=TextForm(delimiter="|"))


def test_compressed_tables_and_arrays_of_objects_are_rows(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a;b\n1,5;x\n"))
    (tmp_path / "t.json").write_text('[{"a": "1,5"}, {"a": 2}]')
    form = TextForm(commas=("a",))
    assert read(tmp_path / "t.csv.gz", form=form) == [(["t.csv.gz:2"], {"a": ["1.5"], "b": ["x"]})]
    assert read(tmp_path / "t.json") == [(["t.json:1", "t.json:2"], {"a": ["1,5", 2]})]


def test_points_beside_decimal_commas_are_refused_with_both_places(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1,5;1.0\n2;2,5\n1.234;3\n")
    said = r"written in a single way\. `a` has `1\.234` \(`t\.csv:4`\) and `1,5` \(`t\.csv:2`\)\. Correct them"
    with pytest.raises(DataError, match=said):
        read(tmp_path / "t.csv", form=TextForm(commas=("a",)))


def test_a_pattern_is_read_as_the_files_that_it_matches(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.csv").write_text(f"a\n{name}\n")
    expected = [(["a.csv:2"], {"a": ["a"]}), (["b.csv:2"], {"a": ["b"]})]
    assert read(tmp_path / "*.csv") == expected
    assert [
        (list(rows.places), dict(rows.columns)) for rows in raw_rows_of(tmp_path / "[ab].csv", read=read_raw_rows)
    ] == [(places, {"a": tuple(columns["a"])}) for places, columns in expected]
    with pytest.raises(
        DataError, match=r"There must be files\. `.*\*\.tsv` matches none\. `.*` holds `a\.csv`, `b\.csv`"
    ):
        read(tmp_path / "*.tsv")
