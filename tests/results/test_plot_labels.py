"""Flags above a picture: as few lines as can be, and no text over another or over a pole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from finetune.results.plot_labels import Flag, raise_flags

places = st.lists(st.floats(0.0, 1.0), max_size=8)


def raised(xs: list[float], text: str = "valley 1.2e-3", width: float = 9.0):
    figure = Figure(figsize=(width, 8))
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    lines = raise_flags(axis, [Flag(x, 0.5, text, "black", "normal") for x in xs], axes_height=4.0)
    figure.draw_without_rendering()
    poles = [line.get_window_extent() for line in axis.lines]
    return lines, [text.get_window_extent() for text in axis.texts], poles


@pytest.mark.slow
@settings(max_examples=25, deadline=None)  # drawing takes as long as the machine is busy
@given(xs=places)
def test_no_text_lies_over_another_text_or_crosses_a_pole(xs):
    _, texts, poles = raised(xs)

    assert not [1 for i, box in enumerate(texts) for other in texts[:i] if box.overlaps(other)]
    # A pole ends beside its own text, and may touch that of a flag at the very same place.
    crossed = [p for box in texts for p in poles if box.x0 + 1 < p.x0 < box.x1 - 1 and p.y1 > box.y0 + 1]
    assert crossed == []


def test_flags_far_from_each_other_share_a_line():
    assert raised([0.1, 0.5, 0.9])[0] == 1


def test_flags_at_one_place_are_stacked_on_both_sides():
    assert raised([0.5] * 4)[0] == 2


def test_no_flags_take_no_line():
    assert raised([])[0] == 0


@pytest.mark.parametrize("xs", [[0.0, 0.0, 0.01], [0.99, 1.0, 1.0]])
def test_at_the_edge_all_are_written_inwards(xs):
    _, texts, _ = raised(xs, "a rather long text for a flag", width=6.0)

    assert all(box.x0 >= 0 and box.x1 <= 660 for box in texts)
