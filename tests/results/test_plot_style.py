import math

from hypothesis import given
from hypothesis import strategies as st

from finetune.results.plot_style import COLOURS, as_floats, finish, gradient, line_style, loss_limits, new_figure


def test_a_divergence_is_cut_off_and_the_start_of_the_curve_is_not():
    falls_then_diverges = [2.0, 1.8, 1.5, 1.0, 1.2, 50.0, 1e9]

    low, high = loss_limits(falls_then_diverges, falls_then_diverges)

    assert low <= 1.0
    assert 2.0 <= high <= 3.0


def test_without_a_finite_loss_the_limits_are_0_and_1():
    assert loss_limits([None, math.nan, math.inf], [None]) == (0.0, 1.0)


def test_colours_of_a_gradient_become_brighter_from_the_first_group_to_the_last():
    brightness = [sum(gradient(share)[:3]) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]

    assert brightness == sorted(brightness)
    assert brightness[-1] < 2.5, "too pale for a line"


def test_more_lines_than_colours_begin_again():
    assert line_style(len(COLOURS)) == line_style(0)
    assert len({str(line_style(number)) for number in range(len(COLOURS))}) == len(COLOURS)


def test_a_missing_value_becomes_nan():
    assert [math.isnan(value) for value in as_floats([1.0, None, math.nan])] == [False, True, True]


@given(losses=st.lists(st.none() | st.floats(width=32), min_size=1, max_size=50))
def test_the_limits_hold_the_lowest_smoothed_loss(losses):
    low, high = loss_limits(losses, losses)

    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    assert not known or low <= min(known) <= high


def test_a_picture_shows_control_characters_of_names_escaped(tmp_path):
    figure, (axis,) = new_figure(1, 1, size=(3, 3))
    axis.plot([1, 2], label="loss of a\x1b[31m")
    axis.set_title("b\x07")
    axis.legend()
    finish(figure, tmp_path / "a")
    assert axis.get_title() == "b\\x07"
    assert axis.get_legend().get_texts()[0].get_text() == "loss of a\\x1b[31m"
    assert not set("\x1b\x07") & set((tmp_path / "a.svg").read_text())
