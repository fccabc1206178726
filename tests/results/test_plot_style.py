import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.results.plot_style import COLOURS, line_style, numbers, rate_text, worth_showing


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.00123, "1.2e-3"), (0.25, "0.25"), (0.1, "0.1"), (1.6, "1.6"), (10, "10"), (5e-11, "5.0e-11"), (3e5, "3.0e5")],
)
def test_a_rate_is_written_short(rate, text):
    assert rate_text(rate) == text


def test_more_lines_than_colours_begin_again():
    assert line_style(len(COLOURS)) == line_style(0)
    assert len({str(line_style(number)) for number in range(len(COLOURS))}) == len(COLOURS)


def test_what_is_missing_is_no_number():
    assert [math.isnan(value) for value in numbers([1.0, None, math.nan])] == [False, True, True]


@given(losses=st.lists(st.none() | st.floats(width=32), min_size=1, max_size=50))
def test_the_losses_worth_showing_hold_the_lowest_smoothed_one(losses):
    low, high = worth_showing(losses, losses)

    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    assert not known or low <= min(known) <= high
