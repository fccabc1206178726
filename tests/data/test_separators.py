"""What is between two values of a table, and numbers with a decimal comma."""

import pytest

from finetune.data.separators import SEPARATORS, decimal_in, is_comma_number, separator_of, with_points


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", SEPARATORS)
@pytest.mark.parametrize("ending", ["csv", "dat"])
def test_each_separator_is_what_splits_the_rows_into_the_same_number_of_values(tmp_path, mark, ending):
    other = ";" if mark == "," else ","
    path = written(tmp_path / f"t.{ending}", f'\ufeffa{mark}b\n1{mark}x{other}y\n\n2{mark}"p{mark}\nq"\n')
    assert separator_of(path) == mark
    assert separator_of(written(path, f"a{mark}b\n")) == mark  # names alone


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a,b;c\n1,2;3\n", ","),  # both do: a comma first
        ("text\nx; y\n", ","),
        ("a|b\nx|y|z\n1|2\n", ","),  # another number of values
        ("a;b,c\n1,5;2\n2;3\n", ";"),
        ("", ","),
        ('a;b\n"1;2\n', ","),
        ("a;b\n1,5;2\n", ";"),  # alike by `;`, although by commas it might be a row with its number
        ("a;b\n1;x;5\n2;y;6\n", ";"),  # as R writes names of rows
        ('"a" "b"\n"1" 5 "x"\n"3" 6 "y"\n', " "),
        ("text\n1 good\n2 bad\n", " "),
        ("text\n1 good\n3 bad\n", ","),
        ("a;b\n1;2;\n3;4;\n", ","),  # a separator at the end of the rows
        ("a;b\n1;2;3\n1;4;3\n", ","),  # names of rows are all different
    ],
)
def test_it_splits_all_rows_alike_or_those_below_into_one_more_and_else_it_is_a_comma(tmp_path, text, mark):
    assert separator_of(written(tmp_path / "t.csv", text)) == mark


def test_what_is_written_is_taken_and_what_training_found_is_tried_first(tmp_path):
    path = written(tmp_path / "t.csv", "a,b;c\n1,2;3\n")
    assert [separator_of(path, each) for each in ("tab", ";", "|")] == ["\t", ";", "|"]
    assert separator_of(path, first=";") == ";"
    assert separator_of(written(path, "a,b\n1,2\n"), first=";") == ","
    assert separator_of(written(tmp_path / "t.tsv", "a,b\n1,2\n")) == "\t"
    assert separator_of(tmp_path / "none.csv") == ","


def test_quotes_are_characters_like_others_where_that_is_said(tmp_path):
    path = written(tmp_path / "t.csv", 'a;b\n"x;1\ny;2\n')
    assert (separator_of(path), separator_of(path, quotes=False)) == (",", ";")


def test_rows_beyond_the_first_megabyte_and_values_of_any_length_do_not_count(tmp_path):
    path = written(tmp_path / "t.csv", "a;b\n1;2\n" + f"{'x' * 2**20};3\n" + "1;2;3\n")
    assert separator_of(path) == ";"


@pytest.mark.parametrize("text", ["3,14", "-0,5", "+2,", ",5", "1,5e-3", "7", "12,345"])
def test_numbers_with_a_decimal_comma_are_known(text):
    assert is_comma_number(text)
    assert float(with_points([text])[0]) == float(text.replace(",", "."))


@pytest.mark.parametrize("text", ["1.234,5", "1,234,5", "1,5 kg", ",", "", "1.5", "a,b", "1 000,5", "\u0661,5"])
def test_what_is_none_stays_as_it_is(text):
    assert not is_comma_number(text)
    assert with_points([text]) == [text]


def test_a_decimal_comma_is_looked_for_only_where_commas_do_not_separate():
    assert [decimal_in(mark, "auto") for mark in SEPARATORS] == [".", "auto", "auto", ".", "auto"]
    assert decimal_in(",", ",") == ","
