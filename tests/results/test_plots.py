"""Pictures show what they should, nothing overlaps, and the same data give the same file."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from finetune.results.plots import plot_lr_range, plot_training
from finetune.training.lr_range.consensus import average, suggest
from finetune.training.lr_range.rules import smooth

FILE = (Path(__file__).parents[1] / "data") / "lr_curves.json"
RECORDED = {curve["name"]: curve for curve in json.loads(FILE.read_text(encoding="utf-8"))["curves"]}
ROWS = [
    {"epoch": e, "loss": 2 / e, "val_loss": 2.2 / e, "accuracy": 1 - 1 / e, "learning_rate/body": 0.0, "learning_rate/head": 1e-3}
    for e in range(1, 6)
]  # fmt: skip


FEW = [{"loss": 1.0}]


def curve_and_verdict(name: str, **groups: float):
    recorded = RECORDED[name]
    losses = [math.nan if loss is None else loss for loss in recorded["losses"]]
    curve = {"rates": recorded["rates"], "losses": recorded["losses"], "smoothed": smooth(losses).tolist()}
    curve["group_rates"] = {group: (np.array(recorded["rates"]) * ratio).tolist() for group, ratio in groups.items()}
    return curve, suggest(recorded["rates"], losses, num_steps=recorded["num_steps"]).to_json()


def draw(*names: str, path: Path | None = None, **groups: float):
    pairs = {name: curve_and_verdict(name, **groups) for name in names}
    return plot_lr_range({n: c for n, (c, _) in pairs.items()}, {n: v for n, (_, v) in pairs.items()}, path=path)


def texts(figure) -> list[str]:
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [text.get_text() for text in [*figure.texts, *figure.axes[0].texts]] + legend


@pytest.mark.parametrize("given", ["curve", "curve.png", "curve.svg"])
def test_a_picture_is_written_as_png_and_svg_and_nothing_else(tmp_path, given):
    draw("adam_mlp_from_scratch", path=tmp_path / "plots" / given)

    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["curve.png", "curve.svg"]
    assert (tmp_path / "plots" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "plots" / "curve.svg").getroot().tag.endswith("svg")


def test_a_name_with_a_point_keeps_all_of_it(tmp_path):
    plot_training(ROWS[:1], path=tmp_path / "rate-1.5")

    assert {file.name for file in tmp_path.iterdir()} == {"rate-1.5.png", "rate-1.5.svg"}


@pytest.mark.slow
def test_the_same_data_give_the_same_files(tmp_path):
    for name in ("first", "second"):
        draw("new_head_on_pretrained", path=tmp_path / name, stem=0.1, head=1.0)

    for ending in ("svg", "png"):
        assert (tmp_path / f"first.{ending}").read_bytes() == (tmp_path / f"second.{ending}").read_bytes()
    assert "<dc:date>" not in (tmp_path / "first.svg").read_text()


def test_every_rule_and_the_consensus_are_marked_and_named():
    figure = draw("sgd_cnn_with_batchnorm")

    assert {text.split()[0] for text in texts(figure)} >= {
        "valley",
        "slide",
        "minimum",
        "steep",
        "suggested",
        "diverges",
    }
    assert any(text.startswith("suggested 5.2e-2, confidence 0.8") for text in texts(figure))
    [star] = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert star.get_xdata()[0] == pytest.approx(0.052, rel=0.02)


def test_a_rule_that_is_not_used_is_in_brackets():
    assert "(steep 2.3)" in texts(draw("adam_mlp_from_scratch"))


def test_a_suggestion_outside_the_range_is_named_below():
    assert "(minimum 2.8e-10: outside the range)" in texts(draw("flat_range_too_low"))


def test_the_reason_for_no_suggestion_is_written_into_the_picture():
    [reason] = [text for text in texts(draw("diverges_at_once")) if text.startswith("No suggestion.")]

    assert reason.replace("\n", " ").endswith("Start lower, e.g. with a `start` of 3e-05.")


CROWDED = [
    "new_head_on_pretrained",
    "regression_large_losses",
    "already_at_the_optimum",
    "runs_into_nan",
    "forty_steps",
]


@pytest.mark.parametrize("name", CROWDED)
def test_no_text_lies_over_another_and_none_is_cut_off(name):
    figure = draw(name, stem=0.15, body=0.4, head=1.0)

    figure.draw_without_rendering()
    axis = figure.axes[0]
    written = list(axis.texts)
    others = [*figure.texts, axis.xaxis.label, axis.yaxis.label]
    others += [child.xaxis.label for child in axis.child_axes] + list(figure.legends)
    boxes = [thing.get_window_extent() for thing in [*written, *others]]
    assert not [(i, j) for i, box in enumerate(boxes) for j in range(i) if box.overlaps(boxes[j])]
    assert all(
        box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes
    )


def test_one_multiplier_over_all_groups_shows_the_rates_of_the_others_on_axes_of_their_own():
    axis = draw("adam_mlp_from_scratch", stem=0.1, norm=0.1, body=0.5, head=1.0).axes[0]

    assert axis.get_xlabel() == "learning rate of head"
    assert [below.get_xlabel() for below in axis.child_axes] == ["of body", "of stem, norm"]
    axis.figure.draw_without_rendering()
    assert axis.child_axes[1].get_xlim() == pytest.approx([0.1 * x for x in axis.get_xlim()])


def test_many_groups_get_three_axes_at_most():
    groups = {f"block{i}": 2.0 ** (i - 12) for i in range(12)}

    assert len(draw("adam_mlp_from_scratch", **groups, head=1.0).axes[0].child_axes) == 3


def test_every_group_has_an_axis_or_a_note_and_the_lag_of_the_smoothed_loss_is_explained():
    groups = {f"block{i}": 2.0 ** (i - 7) for i in range(8)}
    curve, verdict = curve_and_verdict("adam_mlp_from_scratch", **groups)
    curve["group_rates"]["stem"] = [0.0] * 100
    figure = plot_lr_range({"all groups": curve}, {"all groups": verdict})
    [note] = [" ".join(text.split()) for text in texts(figure) if "smoothed loss is" in text]
    on_axes = [axis.get_xlabel() for axis in [figure.axes[0], *figure.axes[0].child_axes]]
    for group in groups:
        assert any(group in label for label in on_axes) != (f"{group} ({groups[group]:.3g})" in note)
    assert note.startswith("The smoothed loss is a mean of all losses so far")
    assert note.endswith("Not raised in proportion: stem.")


def test_groups_with_a_constant_rate_and_frozen_groups_get_no_axis():
    curve, verdict = curve_and_verdict("adam_mlp_from_scratch", head=1.0)
    curve["group_rates"] |= {"body": [1e-3] * 100, "stem": [0.0] * 100}

    figure = plot_lr_range({"head": curve}, {"head": verdict})

    assert figure.axes[0].child_axes == []


def test_several_groups_get_a_line_a_star_and_a_line_in_the_legend_each():
    figure = draw("adam_mlp_from_scratch", "sgd_cnn_with_batchnorm", "tiny_batches_noisy")

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split(":")[0] for text in legend] == [
        "adam_mlp_from_scratch",
        "sgd_cnn_with_batchnorm",
        "tiny_batches_noisy",
    ]
    assert "no suggestion" in legend[2]
    assert [line.get_marker() for line in figure.axes[0].lines].count("*") == 2
    assert not [text for text in texts(figure) if text.startswith(("valley", "steep"))]
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
    assert len({line.get_linestyle() for line in thick} | {line.get_color() for line in thick}) >= 4


def test_repeats_are_drawn_as_a_band_around_their_mean():
    rng = np.random.default_rng(0)
    recorded = RECORDED["adam_mlp_from_scratch"]
    repeats = [np.array(recorded["losses"])[:90] + rng.normal(0, 0.1, 90) for _ in range(3)]
    rates, mean = recorded["rates"][:90], average(repeats)
    curve = {"rates": rates, "losses": mean.tolist(), "smoothed": smooth(mean).tolist(), "repeats": [smooth(r).tolist() for r in repeats]}  # fmt: skip

    figure = plot_lr_range({"head": curve}, {"head": suggest(rates, mean, repeats=repeats).to_json()})

    [band] = figure.axes[0].collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == pytest.approx(min(min(r) for r in curve["repeats"]))
    assert any("3 repeats" in text for text in texts(figure))


def test_a_divergence_does_not_flatten_what_comes_before_it():
    curve, verdict = curve_and_verdict("runs_into_nan")

    low, high = plot_lr_range({"head": curve}, {"head": verdict}).axes[0].get_ylim()

    assert max(value for value in curve["smoothed"] if math.isfinite(value)) > 1e12
    assert high - low < 1e5


def test_training_gets_a_panel_for_the_loss_for_each_metric_and_for_the_rates():
    axes = plot_training(ROWS).axes

    assert [axis.get_title(loc="left") for axis in axes] == ["loss", "accuracy", "learning rate"]
    assert [[text.get_text() for text in axis.get_legend().get_texts()] for axis in axes] == [
        ["training", "validation"],
        ["training"],
        ["body", "head"],
    ]
    assert axes[2].get_yscale() == "log"
    body, head = (line.get_ydata() for line in axes[2].lines)
    assert np.isnan(body).all(), "a rate of 0 leaves a gap"
    np.testing.assert_array_equal(head, [1e-3] * 5)


@pytest.mark.parametrize("value", [0.00025, 1234567.0, 123456.7, -98765.4, 1e-7, 3e12])
def test_no_number_beside_a_panel_is_cut_off_or_lies_in_another_panel(value):
    rows = [{"epoch": n, "loss": value / n, "accuracy": value * n, "learning_rate/body": 1e-3 / n} for n in (1, 2, 3)]
    figure = plot_training(rows)
    figure.draw_without_rendering()
    left = 0.0
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box.x0 >= left
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
        left = axis.bbox.x1
    assert box.x1 <= figure.bbox.width


def in_phases(*numbers: int) -> list[dict]:
    """The rows with rates for both groups, in these phases."""
    return [{**row, "learning_rate/body": 1e-4, "phase": phase} for row, phase in zip(ROWS, numbers, strict=True)]


def test_the_start_of_a_phase_is_marked_in_every_panel_and_the_phase_is_not_a_metric():
    axes = plot_training(in_phases(1, 1, 2, 2, 3)).axes

    assert [axis.get_title(loc="left") for axis in axes] == ["loss", "accuracy", "learning rate"]
    for axis in axes:
        marks = [
            line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2
        ]
        assert marks == [2.5, 4.5]


def test_the_rate_of_a_group_has_a_gap_in_phases_that_do_not_train_it():
    axes = plot_training(in_phases(1, 1, 2, 2, 3), trained={1: ["head"], 2: ["body", "head"], 3: ["head"]}).axes

    body, head = (line.get_ydata() for line in axes[2].lines[:2])
    np.testing.assert_array_equal(body, [np.nan, np.nan, 1e-4, 1e-4, np.nan])
    np.testing.assert_array_equal(head, [1e-3] * 5)


def test_of_many_groups_the_legend_names_three_and_no_two_lines_look_alike():
    rates = {f"learning_rate/block_{n}": 1e-4 * 1.2**n for n in range(12)}
    [*_, axis] = plot_training([{"epoch": epoch, "loss": 1.0, **rates} for epoch in (1, 2)]).axes

    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["block_0", "block_6", "block_11"]
    assert len({tuple(line.get_color()) for line in axis.lines}) == 12


@pytest.mark.parametrize("rows", [[], ROWS[:1], [{"loss": math.nan}, {"loss": None}]])
def test_a_history_of_nearly_nothing_is_drawn_all_the_same(rows, tmp_path):
    plot_training(rows, path=tmp_path / "training")

    assert (tmp_path / "training.png").stat().st_size > 500


def test_notebooks_get_the_picture_from_the_figure_itself():
    assert plot_training(FEW)._repr_png_().startswith(b"\x89PNG")


def test_drawing_changes_no_settings_and_ignores_those_of_the_machine(tmp_path):
    with mpl.rc_context({"font.size": 3, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        plot_training(FEW, path=tmp_path / "odd")
        assert dict(mpl.rcParams) == before
    plot_training(FEW, path=tmp_path / "plain")

    assert (tmp_path / "odd.svg").read_bytes() == (tmp_path / "plain.svg").read_bytes()


def test_pictures_need_no_display_and_no_pyplot_and_matplotlib_only_when_drawn(tmp_path):
    code = (
        "import sys; from finetune.results.plots import plot_training; assert 'matplotlib' not in sys.modules\n"
        f"from pathlib import Path; plot_training([{{'loss': 1.0}}], path=Path({str(tmp_path)!r}) / 'training')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {"PATH": "", "HOME": str(tmp_path), "MPLBACKEND": "TkAgg", "MPLCONFIGDIR": mpl.get_configdir()}

    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    assert (tmp_path / "training.svg").exists()
