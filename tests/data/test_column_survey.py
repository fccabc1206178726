"""What a column of a table looks like: kinds told apart by values, sentences in many rows, columns without a name."""

import pytest

from finetune.data.survey import survey_of_tables


def columns_of(path, text):
    path.write_text(text)
    return survey_of_tables({"table": path}).columns


def test_a_column_without_a_name_tells_rows_apart(tmp_path):
    first = columns_of(tmp_path / "t.csv", ",a,b\nx,1,u\nx,2,v\ny,3,u\n")[0]
    assert (first.name, first.kind) == ("Unnamed: 0", "id")


@pytest.mark.parametrize(
    ("second", "distinct", "words", "kind"),
    [
        ("a text of its own in every row {n}", 12, 4, "text"),  # beside text that does not repeat
        ("a text of its own in every row {n}", 12, 3, "category"),
        ("{n}", 25, 5, "text"),
        ("{n}", 25, 4, "category"),
        ("{n}", 12, 5, "category"),
    ],
)
def test_sentences_that_stand_in_many_rows_are_text_and_names_of_categories_are_not(
    tmp_path, second, distinct, words, kind
):
    rows = [f"{' '.join(['word'] * (words - 1))} {n % distinct},{second.format(n=n)},{'ny'[n % 2]}" for n in range(100)]
    first = columns_of(tmp_path / "a.csv", "\n".join(["first,second,label", *rows]))[0]
    assert (first.kind, first.repeats, first.words, first.distinct) == (kind, kind == "text", words, distinct)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("train", "test"), "split"),
        (("train", "test", "validation"), "split"),
        (("Train", "Test", "Val"), "split"),
        (("train", "exam"), "category"),
        (("train", "val"), "category"),  # which says no rows to test on
        (("train", "training", "test"), "category"),
    ],
)
def test_a_column_of_train_and_test_says_the_split(tmp_path, values, kind):
    rows = [f"{n},{values[n % len(values)]}" for n in range(30)]
    part = columns_of(tmp_path / "t.csv", "\n".join(["u,part", *rows]))[1]
    assert (part.kind, part.distinct) == (kind, len(values))
