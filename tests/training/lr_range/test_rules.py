"""The rules are plain arithmetic; the oracle is fastai itself, asked on curves that it recorded (tests/data/lr_curves.json)."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.training.lr_range.rules import RULES, analysed, minimum, slide, smooth, steep, valley

CURVES = json.loads((Path(__file__).parents[2] / "data").joinpath("lr_curves.json").read_text(encoding="utf-8"))[
    "curves"
]
RATES = np.geomspace(1e-7, 10, 100)
curve = pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve["name"])
losses = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


def array(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


@curve
def test_smoothing_equals_fastais_recorder(curve):
    np.testing.assert_allclose(smooth(array(curve["losses"])), array(curve["smoothed"]), rtol=3e-6)


@pytest.mark.parametrize("ours", ["our smoothing", "fastai's smoothing"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@curve
def test_every_rule_answers_as_fastai_does(curve, rule, ours):
    smoothed = smooth(array(curve["losses"])) if ours == "our smoothing" else array(curve["smoothed"])

    found = rule(np.array(curve["rates"]), smoothed, curve["num_steps"])

    expected = curve["fastai"][rule.__name__]
    assert (found and found.rule) == (expected and rule.__name__)
    assert (found and found.learning_rate) == (expected and pytest.approx(expected, rel=1e-6))


def test_the_recorded_curves_hold_every_kind():
    kept = {curve["name"]: len(curve["rates"]) for curve in CURVES}

    assert len(kept) >= 10
    assert kept["diverges_at_once"] < 16, "fastai itself raised an error here"
    assert any(None in curve["losses"] for curve in CURVES), "one runs into NaN"
    assert {curve["num_steps"] for curve in CURVES} >= {40, 100}


def test_the_first_value_of_a_smoothed_curve_is_the_first_loss_and_a_constant_stays():
    assert smooth([3.0, 5.0])[0] == pytest.approx(3.0)
    np.testing.assert_allclose(smooth([7.0] * 50), 7.0)
    np.testing.assert_allclose(smooth([1.0, 2.0]), [1.0, (0.98 * 0.02 * 1 + 0.02 * 2) / (1 - 0.98**2)])


def test_without_weight_on_the_past_smoothing_changes_nothing():
    np.testing.assert_array_equal(smooth([3.0, 1.0, 2.0], beta=0), [3.0, 1.0, 2.0])


def test_a_loss_that_is_no_number_spoils_the_smoothed_curve_from_there_on_only():
    np.testing.assert_array_equal(np.isnan(smooth([1.0, 2.0, math.nan, 1.0])), [False, False, True, True])
    np.testing.assert_array_equal(np.isfinite(smooth([1.0, math.inf, 1.0])), [True, False, False])


@pytest.mark.parametrize(("steps", "planned", "kept"), [(100, 100, (10, 95)), (40, 100, (10, 35)), (12, 100, (10, 10))])
def test_the_rules_look_at_neither_the_first_tenth_of_the_planned_steps_nor_the_last_five(steps, planned, kept):
    assert analysed(np.ones(steps), planned) == slice(*kept)


def test_the_rules_stop_looking_at_the_first_loss_that_is_no_number():
    broken = np.ones(100)
    broken[50:] = math.nan

    assert analysed(broken, 100) == slice(10, 50)
    assert analysed(np.full(100, math.nan), 100) == slice(10, 10)


def test_on_a_straight_descent_valley_lies_half_way():
    falling = np.linspace(3, 1, 100)

    assert valley(RATES, falling, 100).index == 10 - 1 + 85 // 3 + 85 // 6


def test_valley_without_a_descent_is_the_first_rate_and_after_one_step_of_it_the_last_as_in_fastai():
    rising = np.linspace(1, 3, 100)

    assert valley(RATES, rising, 100).index == 10
    rising[10] = 1.23  # the first that counts lies above the second, and nothing else falls
    assert valley(RATES, rising, 100).index == 94


def test_the_longest_descent_may_skip_steps_that_rise():
    bumpy = np.linspace(3, 1, 100)
    bumpy[20:90:7] += 10

    assert 40 < valley(RATES, bumpy, 100).index < 60


def test_minimum_is_a_tenth_of_the_rate_at_the_lowest_loss():
    bowl = (np.arange(100) - 60.0) ** 2

    assert minimum(RATES, bowl, 100).learning_rate == pytest.approx(RATES[60] / 10)
    assert minimum(RATES, bowl, 100).index == 60


def test_steep_is_where_the_loss_falls_fastest_for_the_logarithm_of_the_rate():
    cliff = np.where(np.arange(100) > 70, 1.0, 2.0)

    assert steep(RATES, cliff, 100).index == 70


def test_slide_needs_sixteen_points_and_the_others_fewer():
    short = np.linspace(2, 1, 30)

    assert [rule(RATES[:30], short, 100) is None for rule in (valley, slide, minimum, steep)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_without_anything_to_look_at_says_nothing(rule):
    assert rule(RATES[:12], np.ones(12), 100) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@given(values=losses, planned=st.integers(1, 100))
def test_what_a_rule_says_lies_in_the_part_it_looks_at(rule, values, planned):
    rates, smoothed = RATES[: len(values)], np.array(values)

    found = rule(rates, smoothed, planned)

    part = analysed(smoothed, planned)
    if found is not None:
        assert part.start <= found.index < part.stop
        assert found.learning_rate == pytest.approx(rates[found.index] / (10 if rule is minimum else 1))


@given(values=losses, scale=st.sampled_from([0.5, 4.0, 1024.0]))
def test_the_scale_of_the_loss_matters_to_slide_alone(values, scale):
    rates, smoothed = RATES[: len(values)], np.array(values)

    for rule in (valley, minimum, steep):
        assert rule(rates, smoothed, len(values)) == rule(rates, smoothed * scale, len(values))


def test_the_rules_need_neither_tensorflow_nor_keras():
    code = "import sys, finetune.training.lr_range.consensus; sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras')))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
