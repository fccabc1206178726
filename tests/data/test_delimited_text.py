"""Lines of values in text: every row once, whatever is in it, and what is said about files that are something else."""

import csv
import gzip
import zipfile

import numpy as np
import pytest

from finetune.data.delimited_text import delimited_rows, text_array
from finetune.data.table_files import read_table
from finetune.errors import DataError

ODD = [
    "caf\u00e9 \u2603",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u05e9\u05dc\u05d5\u05dd",
    "a\x00b",
    "\u202eabc",
    "z\u0301",
]


def written(path, *lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def problem(path):
    with pytest.raises(DataError) as caught:
        read_table(path)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_texts_of_every_script_come_out_as_they_are(tmp_path, ending):
    path = tmp_path / f"odd.{ending}"
    separator = {"csv": ",", "tsv": "\t"}.get(ending)
    if separator:
        written(path, f"text{separator}label", *[f"{text}{separator}x" for text in ODD])
    else:
        written(path, *[f'{{"text": {ascii(text).replace(chr(39), chr(34))}, "label": "x"}}' for text in ["a", "b"]])
    values = read_table(path).column("text").values.tolist()
    assert values == (ODD if separator else ["a", "b"])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_belongs_to_no_name(tmp_path, ending):
    lines = {"csv": ["text,label", "a,b"], "tsv": ["text\tlabel", "a\tb"], "jsonl": ['{"text": "a", "label": "b"}']}
    path = written(tmp_path / f"t.{ending}", *lines[ending], encoding="utf-8-sig")
    assert list(read_table(path).columns) == ["text", "label"]


def test_a_value_may_be_a_million_characters_long_and_costs_no_more_than_itself(tmp_path):
    path = written(
        tmp_path / "t.tsv", "text\tlabel", *[f"{'word ' * (200_000 if n == 7 else 1)}\tx" for n in range(5000)]
    )
    before = csv.field_size_limit()
    values = read_table(path).column("text").values
    assert len(values[7]) == 999_999
    assert values.nbytes < 2**20  # and not 5,000 times a million characters
    assert csv.field_size_limit() == before


def test_arrays_of_text_are_as_wide_as_their_widest_where_that_is_no_waste():
    assert text_array(["a", "bcd"]).dtype == "U3"
    wide = text_array(["x" * 20_000, *["y"] * 2000])
    assert wide.dtype.kind == "T"
    assert (wide == "y").sum() == 2000
    assert text_array(["x" * 20_000] * 2000).dtype.kind == "T"
    assert text_array(["abc"] * 2_000_000).dtype == "U3"
    assert text_array([]).dtype.kind == "U"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_characters_are_named_with_how_to_convert_them(tmp_path, encoding):
    said = problem(written(tmp_path / "t.csv", "text,label", *["good,yes"] * 20, encoding=encoding))
    name = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(encoding, encoding.upper())
    assert f"`t.csv` is in {name}. Convert it: `iconv -f {name} -t UTF-8 t.csv > utf8.csv`" in said


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_of_latin_1_is_named_with_its_line_and_place_far_into_the_file(tmp_path, ending):
    rows = ["good film,yes" if ending == "csv" else '{"text": "good", "label": "yes"}'] * 9000  # beyond a buffer
    (tmp_path / f"t.{ending}").write_bytes(
        "\n".join(["text,label" if ending == "csv" else rows[0], *rows]).encode()
        + b"\n"
        + "un caf\u00e9 noir,no\n".encode("latin1")
    )
    said = problem(tmp_path / f"t.{ending}")
    assert f"`t.{ending}:9002` holds the byte 0xe9 at place 7, which would be `un caf\u00e9 noir,no` in Latin-1" in said
    assert f"`iconv -f CP1252 -t UTF-8 t.{ending} > utf8.{ending}`" in said


def test_what_is_no_text_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "excel.csv", "w") as file:
        file.writestr("a", "b")
    (tmp_path / "packed.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert "`excel.csv` is a ZIP archive, such as a file of Excel. Save it as CSV" in problem(tmp_path / "excel.csv")
    assert "`packed.csv` is compressed. Unpack it: `gunzip`" in problem(tmp_path / "packed.csv")


RAW = ["label\ttext", 'ham\t"Gimme a few" was said', 'spam\t"WIN a prize', "ham\tok", 'ham\tend" of it', "spam\tlast"]


def test_quotes_that_do_not_match_are_an_error_that_says_how_to_read_them_as_they_are(tmp_path):
    path = written(tmp_path / "sms.tsv", *RAW)
    assert "`sms.tsv:2` failed" in problem(path)
    assert "Where quotes are characters like others, set `data.quotes: false`." in problem(path)
    assert read_table(path, quotes=False).column("text").values.tolist() == [line.split("\t")[1] for line in RAW[1:]]


def test_quotes_are_characters_like_others_with_every_reader(tmp_path):
    path = written(tmp_path / "sms.tsv", *RAW)
    odd = written(tmp_path / "odd.tsv", *RAW, "ham\ta\x0bb")  # what the fast reader leaves to the other
    fast, slow = (read_table(each, quotes=False).column("text").values.tolist() for each in (path, odd))
    assert slow == [*fast, "a\x0bb"]


def test_a_quote_that_swallows_rows_is_a_warning_with_its_line(tmp_path):
    lines = ["label\ttext", "ham\tfirst", 'spam\t"WIN a prize', "ham\tok", "ham\tstill", 'ham\tend of it"', "ham\tlast"]
    table = read_table(written(tmp_path / "sms.tsv", *lines))
    assert len(table) == 3
    assert table.warnings == (
        "quotes in `sms.tsv:3` enclose 3 line breaks with lines that look like rows, which are not read as rows. Where "
        "quotes are characters like others, set `data.quotes: false`",
    )
    assert table.select(np.array([0])).warnings == table.warnings
    assert len(read_table(tmp_path / "sms.tsv", quotes=False)) == 6


def test_texts_of_several_lines_are_no_warning(tmp_path):
    poem = '"Roses are red,\nviolets, as I said,\nand so, are you\nand so, my dear,\nit ends",x'
    lines = ["text,label", poem, *[f"short {n},{'xy'[n % 2]}" for n in range(6)]]
    assert read_table(written(tmp_path / "poems.csv", *lines)).warnings == ()
    assert read_table(written(tmp_path / "one.csv", "text", '"a\nb\nc"')).warnings == ()
    swallowed = '"a\nb,x\nc,y\nd,x\ne",x'  # lines that end in a label, as the rows do
    assert "`poems.csv:2`" in read_table(written(tmp_path / "poems.csv", *lines[:1], swallowed, *lines[2:])).warnings[0]


def test_the_row_in_which_a_quote_was_opened_is_named(tmp_path):
    path = written(tmp_path / "t.csv", "text,label", "a,x", '"open,x', "b,y", 'c" d,x')
    assert "Reading `t.csv:5`, in the row that begins in line 3, failed" in problem(path)


def test_rows_come_with_the_line_where_they_end(tmp_path):
    path = written(tmp_path / "t.csv", "a,b", "", '"x\ny",1', "z,2")
    assert list(delimited_rows(path, ",")) == [(1, ["a", "b"]), (4, ["x\ny", "1"]), (5, ["z", "2"])]


def test_half_a_character_does_not_keep_long_texts_from_being_read():
    texts = ["x" * 20_000, "\ud800", *["y"] * 2000]
    assert text_array(texts).tolist() == texts
