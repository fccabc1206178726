"""Labels above a picture: on few lines, and no label over another or across a leader line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from finetune.results.plot_labels import PointLabel, draw_labels

places = st.lists(st.floats(0.0, 1.0), max_size=8)


def drawn(xs: list[float], text: str = "valley 1.2e-3", width: float = 9.0):
    figure = Figure(figsize=(width, 8))
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    lines = draw_labels(axis, [PointLabel(x, 0.5, text, "black", "normal") for x in xs], axes_height=4.0)
    figure.draw_without_rendering()
    leaders = [line.get_window_extent() for line in axis.lines]
    return lines, [text.get_window_extent() for text in axis.texts], leaders


@pytest.mark.slow
@settings(max_examples=25, deadline=None)  # drawing takes as long as the machine is busy
@given(xs=places)
def test_no_text_lies_over_another_text_or_crosses_a_leader_line(xs):
    _, texts, leaders = drawn(xs)

    assert not [1 for i, box in enumerate(texts) for other in texts[:i] if box.overlaps(other)]
    # A leader line ends beside its label, and may touch another label of the very same place.
    crossed = [p for box in texts for p in leaders if box.x0 + 1 < p.x0 < box.x1 - 1 and p.y1 > box.y0 + 1]
    assert crossed == []


def test_labels_far_from_each_other_share_a_line():
    assert drawn([0.1, 0.5, 0.9])[0] == 1


def test_labels_at_one_place_are_stacked_on_both_sides():
    assert drawn([0.5] * 4)[0] == 2


def test_no_labels_take_no_line():
    assert drawn([])[0] == 0


@pytest.mark.parametrize("xs", [[0.0, 0.0, 0.01], [0.99, 1.0, 1.0]])
def test_at_the_edge_all_are_written_inwards(xs):
    _, texts, _ = drawn(xs, "a rather long text for a label", width=6.0)

    assert all(box.x0 >= 0 and box.x1 <= 660 for box in texts)


def test_a_leader_line_goes_from_the_point_of_the_curve_to_its_label():
    figure = Figure(figsize=(9, 8))
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 2))
    draw_labels(axis, [PointLabel(0.4, 0.5, "valley", "red", "bold")], axes_height=4.0)

    [leader] = axis.lines
    assert list(leader.get_xdata()) == [0.4, 0.4]
    assert leader.get_ydata()[0] == 0.25  # as a share of the axes
    assert leader.get_ydata()[1] > 1
    assert (leader.get_color(), axis.texts[0].get_color(), axis.texts[0].get_weight()) == ("red", "red", "bold")
