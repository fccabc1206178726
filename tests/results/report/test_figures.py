"""Figures in SVG: well-formed, with a text for those who do not see them."""

from xml.etree import ElementTree

import pytest

from finetune.results.report.figures import as_points, curve, histogram, line_chart, share_bar


def svg(made):
    return ElementTree.fromstring(made).find("svg")


def test_a_chart_says_what_it_shows_and_draws_a_line_for_each():
    made = line_chart("loss", {"training": [(1, 2.5), (2, 0.5)], "<b>": [(1, 1.0), (2, 1.0)]}, x_label="epoch")
    assert svg(made).find("title").text.startswith("loss. training: 2.5 at epoch 1, 0.5 at 2; <b>: 1")
    assert len(svg(made).findall(".//polyline")) == 2
    assert [item.text for item in ElementTree.fromstring(made).findall(".//li/i")] == [None, None]


def test_epochs_have_whole_numbers_on_their_axis():
    made = line_chart("loss", {"training": [(1, 2.5), (2, 0.5)]}, x_label="epoch")
    labels = [text.text for text in svg(made).findall("text") if text.get("text-anchor") == "middle"]
    assert labels == ["1", "2", "epoch"]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points", [[(1, 1.0)], [(1, 0.0), (2, 0.0)], [(1, 1e-9), (2, 1e9)], [(1, float("nan")), (2, 3.0)]]
)
def test_any_points_make_a_figure_inside_its_frame(points, log):
    made = line_chart("loss", {"a": points}, x_label="epoch", log_y=log)
    if "nothing was recorded" in made:
        assert log
        assert all(y <= 0 for _, y in points)
        return
    for line in svg(made).findall(".//polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640
            assert 0 <= y <= 280


def test_nothing_to_draw_is_said():
    assert line_chart("loss", {"a": []}, x_label="epoch") == '<p class="quiet">loss: nothing was recorded.</p>'


def test_of_many_lines_the_first_the_middle_and_the_last_are_named():
    made = line_chart("rate", {f"g{n}": [(1, 1.0), (2, n + 1.0)] for n in range(40)}, x_label="epoch", log_y=True)
    items = ["".join(item.itertext()) for item in ElementTree.fromstring(made).findall(".//li")]
    assert items == ["g0", "g20", "g39", "and 37 between them"]


def test_long_runs_are_thinned_out_and_keep_their_last_point():
    made = line_chart("loss", {"a": [(n, float(n)) for n in range(100_000)]}, x_label="step")
    assert len(made) < 15_000
    assert "1e+05 at 1e+05" in svg(made).find("title").text


def test_a_histogram_says_where_most_rows_are():
    made = histogram("rows", [1, 5, 0], [0.0, 1.0, 2.0, 3.0], x_label="x")
    assert svg(made).find("title").text == "rows: 6 in all, most of them from 1 to 2"


def test_a_share_below_a_half_stands_out_and_a_missing_one_is_a_dash():
    assert 'class="share low"' in share_bar(0.25)
    assert share_bar(None) == '<span class="quiet">-</span>'


def test_a_curve_and_a_column_are_drawn():
    assert ElementTree.fromstring(curve([[0.0, 0.0], [-1.0, 1.0]])).find("title").text == "a curve from -1 to 1"
    assert as_points([{"a": 1, "b": 2}, {"a": 1}, {"b": 0}], "a", "b") == [(1, 2)]
