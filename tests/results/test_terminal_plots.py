"""A curve as text: where the marks are, and that it fits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.results.terminal_plots import terminal_plot

RATES = np.geomspace(1e-7, 10, 100)
FALL = np.linspace(2, 1, 100)


def test_a_straight_fall_is_a_diagonal():
    rows = terminal_plot(RATES, FALL, width=42, height=12, ascii_only=True).splitlines()

    assert [row.index("*") for row in rows[:10]] == sorted(row.index("*") for row in rows[:10])
    assert (rows[0].split("|")[0], rows[9].split("|")[0]) == ("2", "1")
    assert rows[0].split("|")[1].startswith("*")
    assert rows[9].endswith("*")
    assert len(rows[9]) == 42


def test_braille_draws_the_same_line_with_eight_dots_in_a_character():
    plot = terminal_plot(RATES, FALL, width=42, height=12)

    assert plot.splitlines()[0].split("│")[1][0] in "⠁⠉⠑⠙⠈⠢"
    assert chr(0x2800) not in plot, "an empty cell is a blank, which every font has"
    assert len([char for char in plot if 0x2800 < ord(char) < 0x2900]) >= 35


def test_plain_ascii_is_plain_ascii():
    assert terminal_plot(RATES, FALL, mark=1e-3, ascii_only=True).isascii()


def test_powers_of_ten_stand_below_their_place():
    rows = terminal_plot(RATES, FALL, width=90, height=8, ascii_only=True).splitlines()

    labels = rows[-1].split()
    assert labels == ["1e-7", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1e0", "1e1"]
    assert rows[-1].index("1e-7") == rows[-2].index("-")


def test_a_range_of_less_than_two_powers_of_ten_tells_its_ends():
    assert terminal_plot([2e-3, 4e-3, 8e-3], [3.0, 2.0, 1.0]).splitlines()[-1].split() == ["2.0e-3", "8.0e-3"]


@pytest.mark.parametrize("mark", [1e-7, 3.2e-3, 10.0])
def test_a_mark_is_a_pole_with_its_rate_below(mark):
    rows = terminal_plot(RATES, FALL, mark=mark, ascii_only=True, width=60).splitlines()

    place = rows[-1].index("^")
    assert all(row[place] in "|*" for row in rows[:-3])
    share = (math.log10(mark) + 7) / 8
    left = rows[0].index("|") + 1
    assert place - left == pytest.approx(share * (59 - left), abs=1)
    assert f"{mark:.1e}".split("e")[0].rstrip("0").rstrip(".") in rows[-1]
    assert max(map(len, rows)) <= 60


def test_a_divergence_is_cut_at_the_top_and_the_fall_keeps_its_height():
    losses = np.concatenate([FALL, [1e9, math.nan]])

    rows = terminal_plot(np.geomspace(1e-7, 10, 102), losses, ascii_only=True, height=12).splitlines()

    assert float(rows[0].split("|")[0]) < 4
    assert sum("*" in row for row in rows[:10]) == 10


@pytest.mark.parametrize("losses", [[math.nan] * 3, [None, None, None], [1.0, 1.0, 1.0], [math.inf, 1.0, None]])
def test_a_curve_without_a_shape_is_drawn_all_the_same(losses):
    assert len(terminal_plot([1e-3, 1e-2, 1e-1], losses, height=9, mark=1e-2).splitlines()) == 9


@given(
    losses=st.lists(st.none() | st.floats(width=32), min_size=1, max_size=40),
    start=st.floats(1e-9, 1e-2),
    ratio=st.floats(1.001, 3.0),
    width=st.integers(30, 200),
    height=st.integers(6, 40),
    marked=st.booleans(),
    ascii_only=st.booleans(),
)
def test_every_plot_is_as_high_as_asked_and_never_wider(losses, start, ratio, width, height, marked, ascii_only):
    rates = start * ratio ** np.arange(len(losses))

    rows = terminal_plot(rates, losses, width=width, height=height, mark=rates[-1] if marked else None, ascii_only=ascii_only).split("\n")  # fmt: skip

    assert len(rows) == height
    assert max(map(len, rows)) <= width
