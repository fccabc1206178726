"""What is known of the bytes of a table at a glance."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import plain_bytes
from finetune.data.plain_bytes import look_at_bytes


def look(text, delimiter=","):
    return look_at_bytes(np.frombuffer(text.encode(), np.uint8), delimiter)


@pytest.mark.parametrize(
    ("text", "lines", "is_plain", "is_ascii"),
    [
        ("a,b\n1,2\n", 2, True, True),
        ("a,b\n1,2", 2, True, True),
        ("a\n1\n\n\n", 2, True, True),
        ("\n\n", 0, True, True),
        ("", 0, True, True),
        ("a,b\n1,\u00e9\n", 2, True, False),
        ('a,b\n1,"2"\n', 2, False, True),
        ("a,b\r\n1,2\r\n", 2, False, True),
        ("a,b\n1,\t2\n", 2, False, True),
        ("a,b\n1,\0\n", 2, False, True),
    ],
)
def test_lines_are_counted_and_what_readers_disagree_about_is_seen(text, lines, is_plain, is_ascii):
    about = look(text)
    assert (about.lines, about.is_plain, about.is_ascii) == (lines, is_plain, is_ascii)


def test_tabs_are_plain_between_the_cells_of_a_tsv():
    assert look("a\tb\n1\t007\n", "\t") == plain_bytes.PlainBytes(2, True, True, has_codes=True)


@pytest.mark.parametrize(("cell", "is_code"), [("007", True), ("-01", True), ("+00", True), ("  07", True)])
@pytest.mark.parametrize("text", ["{},1\n", "1,{}\n", "1,2\n{},3", "1,{},2\n"])
@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_numbers_that_begin_like_codes_are_found_wherever_they_are(text, cell, is_code, mark):
    assert look(("a,b\n" + text.format(cell)).replace(",", mark), mark).has_codes is is_code


@pytest.mark.parametrize("cell", ["0.07", "100", "1e-05", "0", "2024-01-05", "x05", "row 05", "-0.5", ".05", "1.005"])
def test_other_zeros_are_no_codes(cell):
    assert not look(f"a,b\n{cell},{cell}\n{cell},1\n").has_codes


@given(st.lists(st.sampled_from(["0", "7", "12", ",", "\n", "-", "+", " ", ".", "e"]), max_size=40), st.integers(3, 9))
def test_no_code_is_missed_at_the_ends_of_parts(pieces, together):
    text = "x" + "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_bytes, "_TOGETHER", together)
        about = look(text)
    codes = any(re.match(r"\s*[+-]?0[0-9]", cell) for cell in re.split(r"[,\n]", text))
    assert about.has_codes >= codes  # more may look like one, and is then looked at cell by cell
    assert about.lines == len(text.rstrip("\n").split("\n"))


@pytest.mark.parametrize("cell", ["007", '"7"', "\u00e9", "\t"])
def test_what_is_seen_in_the_first_of_several_parts_is_not_forgotten(cell):
    text = f"a,b\n1,{cell}\n" + "1,2\n" * plain_bytes._TOGETHER
    first, about = look(text[:100]), look(text)
    assert (about.is_plain, about.is_ascii, about.has_codes) == (first.is_plain, first.is_ascii, first.has_codes)
    assert about.lines == plain_bytes._TOGETHER + 2
    assert about != look(text.replace(cell, "2"))
