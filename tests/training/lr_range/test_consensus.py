"""A verdict is a rate that can be trusted, or a reason; checked on real curves and on made ones."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.results.run_folder import write_json
from finetune.training.lr_range.consensus import MAX_DISAGREEMENT, average, suggest

FILE = (Path(__file__).parents[2] / "data") / "lr_curves.json"
CURVES = {curve["name"]: curve for curve in json.loads(FILE.read_text(encoding="utf-8"))["curves"]}
RATES = np.geomspace(1e-7, 10, 100)
X = np.log10(RATES)
CALMER = "Use larger batches, more `steps`, or the mean of several `repeats`, e.g. 5."


def judge(name: str):
    curve = CURVES[name]
    losses = [math.nan if loss is None else loss for loss in curve["losses"]]
    return suggest(curve["rates"], losses, num_steps=curve["num_steps"])


def drop(at: float, *, size: float = 1.0) -> np.ndarray:
    """A fall of the loss around the rate `10**at`."""
    return -size / (1 + np.exp(-(X - at) / 0.2))


def good_curve(scatter: float = 0.0, seed: int = 0) -> np.ndarray:
    """Falls from 1e-4 on and rises from 2.5 on, as a network from scratch does."""
    noise = np.random.default_rng(seed).normal(0, scatter, len(X)) if scatter else 0.0
    return 5 - 1.0 * np.maximum(X + 4, 0) + 40 * np.maximum(X - 0.4, 0) + noise


@pytest.mark.parametrize(
    ("name", "low", "high"),  # within a factor of about 3 of what short trainings found best on the same kind of task
    [
        ("adam_mlp_from_scratch", 7e-3, 7e-2),
        ("sgd_cnn_with_batchnorm", 1.5e-2, 1.5e-1),
        ("new_head_on_pretrained", 3e-3, 3e-2),
        ("forty_steps", 7e-3, 7e-2),
    ],
)
def test_a_real_curve_gets_a_rate_that_trains(name, low, high):
    verdict = judge(name)

    assert verdict.refused is None
    assert low < verdict.learning_rate < high
    assert 0.4 < verdict.confidence < 1


def test_the_rate_is_the_geometric_median_of_the_rules_that_are_used():
    verdict = judge("sgd_cnn_with_batchnorm")

    rates = sorted(suggestion.learning_rate for suggestion in verdict.suggestions)
    assert verdict.used == ("valley", "slide", "minimum", "steep")
    assert verdict.learning_rate == pytest.approx(math.sqrt(rates[1] * rates[2]))
    assert verdict.disagreement == pytest.approx(min(rates[2] / rates[0], rates[3] / rates[1]))


def test_a_rule_that_points_above_the_lowest_loss_is_set_aside():
    verdict = judge("adam_mlp_from_scratch")

    steep = next(suggestion for suggestion in verdict.suggestions if suggestion.rule == "steep")
    assert steep.learning_rate > 1, "fastai's own steep is two orders of magnitude off here"
    assert verdict.used == ("valley", "slide", "minimum")
    assert verdict.confidence < 3 / 4


def test_a_rule_that_points_before_the_loss_falls_is_set_aside():
    verdict = judge("regression_large_losses")

    assert {suggestion.rule: suggestion.learning_rate for suggestion in verdict.suggestions}["slide"] < 1e-6
    assert "slide" not in verdict.used
    assert 1e-2 < verdict.learning_rate < 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("diverges_at_once", r"The loss diverges at once, at step 10 of 100, with a rate of 7\.7e-03\. Start lower, e\.g\. with a `start` of 3e-05\.$"),
        ("flat_range_too_low", r"^The curve is flat up to a rate of 9\.3e-07: it falls by 0\.0064, and its batches scatter by 0\.0\d+\. Set `end` higher\."),
        ("falls_to_the_end", r"^The curve is flat up to a rate of 9\.1e-02: .* Set `end` higher\."),
        ("already_at_the_optimum", r"^The loss does not fall before it rises, at a rate of 3\.0e-01: .* already trained on these data"),
        ("tiny_batches_noisy", r"^The loss does not fall before it rises, .* scatter by 0\.1\d?\. .* or they are too noisy\. Use larger batches"),
    ],
)  # fmt: skip
def test_a_curve_without_a_clear_fall_is_refused_with_the_reason_and_what_to_do(name, reason):
    verdict = judge(name)

    assert (verdict.learning_rate, verdict.confidence) == (None, 0.0)
    assert re.search(reason, verdict.refused), verdict.refused


def test_a_test_of_too_few_steps_is_refused():
    verdict = suggest(RATES[:20], good_curve()[:20])

    assert verdict.refused == (
        "The test is too short: of 20 steps 13 can be used, without the first tenth and the last 5, and 16 are needed. "
        "Set `steps` higher; 100 is usual."
    )


def test_a_loss_that_is_nan_from_the_start_is_refused_with_its_step():
    losses = good_curve()
    losses[4:] = math.nan

    verdict = suggest(RATES, losses)

    assert verdict.divergence == RATES[4]
    assert verdict.refused == (
        "The loss is not finite at step 5 of 100, with a rate of 2.1e-07. Start lower, e.g. with a `start` of 1e-09. "
        "If that changes nothing, look for NaN in the data or in the weights."
    )


def test_a_loss_that_rises_from_the_first_step_needs_a_lower_start():
    verdict = suggest(RATES, 2 + np.maximum(X + 6, 0))

    assert (
        verdict.refused
        == "The loss only rises, starting at a rate of 1.1e-06. Start lower, e.g. with a `start` of 1e-09."
    )


@pytest.mark.parametrize("value", [0.0, 2.3, -5.0])
def test_a_constant_loss_is_flat(value):
    verdict = suggest(RATES, np.full(100, value))

    assert verdict.refused.startswith(
        "The curve is flat up to a rate of 1.0e+01: it falls by 0, and its batches scatter by 0. Set `end` higher."
    )


def test_repeats_that_lie_too_far_apart_are_refused_though_their_mean_is_clear():
    apart = [good_curve() + shift for shift in (-2.0, 0.0, 2.0)]

    verdict = suggest(RATES, average(apart), repeats=apart)

    assert suggest(RATES, average(apart)).refused is None
    assert verdict.refused.startswith("The curve is too noisy: it falls by ")
    assert verdict.refused.endswith(f"and its repeats are 4 apart. {CALMER}")


def test_repeats_that_agree_are_as_good_as_one_curve():
    repeats = [good_curve(0.1, seed) for seed in range(5)]

    verdict = suggest(RATES, average(repeats), repeats=repeats)

    assert verdict.refused is None
    assert verdict.learning_rate == pytest.approx(suggest(RATES, good_curve()).learning_rate, rel=1)


def test_rules_that_disagree_too_much_are_refused_with_their_range():
    verdict = suggest(RATES, 5 + drop(-5) + drop(0, size=2) + 30 * np.maximum(X - 0.4, 0) ** 2)

    assert verdict.disagreement > MAX_DISAGREEMENT
    assert verdict.refused.startswith(
        f"The rules disagree: most of them lie within a factor of {verdict.disagreement:.0f}, and a consensus needs 20 "
        "at most. "
    )
    assert verdict.refused.endswith(f"{CALMER} Or compare short trainings in that range.")


def test_a_single_rule_is_no_consensus():
    # A straight fall over the last steps alone: every rule but the steepest slope points before it.
    losses = np.full(100, 2.0)
    losses[92:] = 0.0

    verdict = suggest(RATES, losses)

    assert verdict.used == ("steep",)
    assert verdict.refused == (
        "At least 2 of the 4 rules must find a rate at which the loss falls. Received: 1. " + CALMER
    )


def test_a_single_stray_rule_does_not_count_as_disagreement():
    verdict = judge("forty_steps")

    rates = [suggestion.learning_rate for suggestion in verdict.suggestions if suggestion.rule in verdict.used]
    assert max(rates) / min(rates) > MAX_DISAGREEMENT > verdict.disagreement


def test_confidence_falls_with_the_scatter_of_the_batches():
    means = [
        np.mean([suggest(RATES, good_curve(scatter, s)).confidence for s in range(40)]) for scatter in (0.25, 1.0, 3.0)
    ]

    assert means[0] > means[1] + 0.1 > means[2] + 0.2


def test_divergence_is_where_the_loss_stays_above_its_start():
    losses = 5 - np.clip(X + 4, 0, 3) + 40 * np.maximum(X - 0.4, 0)
    losses[85] = 16.0  # one bad batch at 0.7, after the lowest loss

    assert 2.0 < suggest(RATES, losses).divergence < 8.0


def test_a_loss_that_still_falls_at_the_end_gets_a_note():
    falling = suggest(RATES, 5 - np.maximum(X + 4, 0))

    assert falling.refused is None
    assert falling.notes == (
        "The loss still falls at the end of the range, 1.0e+01: a higher `end` may show a higher rate.",
    )
    assert suggest(RATES, good_curve()).notes == ()


def test_a_sweep_that_stopped_early_is_judged_by_the_steps_that_were_planned():
    stopped = good_curve()[:95]

    verdict = suggest(RATES[:95], stopped, num_steps=100)

    assert verdict.refused is None
    assert suggest(RATES, good_curve(), num_steps=3) == suggest(RATES, good_curve())
    assert [s.index for s in verdict.suggestions] == [
        s.index for s in suggest(RATES[:95], stopped, num_steps=109).suggestions
    ]


def test_the_average_covers_the_steps_that_all_repeats_made():
    np.testing.assert_array_equal(average([[1.0, 2.0, 9.0], [3.0, 4.0]]), [2.0, 3.0])


@pytest.mark.parametrize("name", list(CURVES))
def test_a_verdict_is_plain_data(name, tmp_path):
    data = judge(name).to_json()

    write_json(tmp_path / "verdict.json", data)
    assert json.loads((tmp_path / "verdict.json").read_text()) == data
    assert [s["rule"] for s in data["suggestions"] if s["used"]] == data["used"]


@pytest.mark.parametrize(
    ("rates", "losses"), [([1e-3, 1e-2], [1.0]), ([1e-2, 1e-3], [1.0, 1.0]), ([0.0, 1.0], [1.0, 1.0]), ([], []), ([[1.0]], [[1.0]])]
)  # fmt: skip
def test_arrays_that_are_not_a_curve_are_an_error(rates, losses):
    with pytest.raises(
        FinetuneError, match=r"A curve has a loss for each learning rate, .* Pass the `rates` and the `losses`"
    ):
        suggest(rates, losses)


@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=100),
    planned=st.none() | st.integers(1, 120),
    many=st.booleans(),
)
def test_every_curve_gets_a_rate_in_its_range_or_a_reason(losses, planned, many):
    rates = RATES[: len(losses)]

    verdict = suggest(rates, losses, num_steps=planned, repeats=[losses, losses] if many else None)

    assert (verdict.learning_rate is None) == (verdict.refused is not None) == (verdict.confidence == 0.0)
    assert 0 <= verdict.confidence <= 1
    assert verdict.learning_rate is None or rates[0] <= verdict.learning_rate <= rates[-1]
    json.dumps(verdict.to_json(), allow_nan=False)


def test_the_same_curve_with_other_batches_gets_a_similar_rate_nearly_every_time():
    verdicts = [suggest(RATES, good_curve(0.25, seed)) for seed in range(40)]

    rates = [verdict.learning_rate for verdict in verdicts if verdict.refused is None]
    assert len(rates) >= 34
    assert max(rates) / min(rates) < 10
