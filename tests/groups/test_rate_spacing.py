"""Rates and lengths are plain arithmetic, checked against NumPy and fastai's formulas."""

import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import GroupError
from finetune.groups.rate_spacing import (
    check_rate,
    discriminative_rates,
    length_in_steps,
    rates_by_group,
    spread_rates,
)

rates = st.floats(1e-12, 10.0)
sizes = st.integers(1, 60)


def fastai_slice(low: float, high: float, n: int) -> list[float]:
    """`even_mults` of fastcore, which `slice(low, high)` uses in fastai."""
    step = (high / low) ** (1 / (n - 1))
    return [low * step**i for i in range(n)]


def test_ulmfit_gives_every_group_the_rate_of_the_next_over_2_6():
    assert discriminative_rates(0.01, 4) == pytest.approx([0.01 / 2.6**3, 0.01 / 2.6**2, 0.01 / 2.6, 0.01], rel=1e-12)


@given(peak=rates, n=sizes, decay=st.floats(1.0, 10.0))
def test_discriminative_rates_equal_numpys_and_end_at_the_peak(peak, n, decay):
    found = discriminative_rates(peak, n, decay=decay)

    np.testing.assert_allclose(found, peak / np.power(decay, np.arange(n - 1, -1, -1, dtype=float)), rtol=1e-12)
    assert found[-1] == peak
    assert all(low <= high for low, high in pairwise(found))


@given(peak=rates, n=sizes, decay=st.floats(1.0, 10.0))
def test_neighbours_stand_in_the_ratio_of_the_decay(peak, n, decay):
    found = discriminative_rates(peak, n, decay=decay)

    for low, high in pairwise(found):
        assert high / low == pytest.approx(decay, rel=1e-9)


def test_a_decay_of_1_gives_every_group_the_peak():
    assert discriminative_rates(0.3, 3, decay=1) == (0.3, 0.3, 0.3)


@given(low=rates, ratio=st.floats(1.0, 1e6), n=st.integers(2, 60))
def test_a_spread_equals_fastais_slice_and_numpys_geomspace(low, ratio, n):
    found = spread_rates(low, low * ratio, n)

    np.testing.assert_allclose(found, fastai_slice(low, low * ratio, n), rtol=1e-9)
    np.testing.assert_allclose(found, np.geomspace(low, low * ratio, n), rtol=1e-9)
    assert (found[0], found[-1], len(found)) == (low, low * ratio, n)


def test_a_spread_over_one_group_gives_it_the_high_rate():
    assert spread_rates(1e-6, 1e-3, 1) == (1e-3,)


def test_a_spread_from_high_to_low_is_an_error_that_turns_it_round():
    with pytest.raises(GroupError, match=r"low to high. Received: `0\.1` and `0\.01`. Write `\[0\.01, 0\.1\]`"):
        spread_rates(0.1, 0.01, 3)


@pytest.mark.parametrize("value", [0, 0.0, np.float32(0)])
def test_a_rate_of_0_is_an_error_that_says_frozen(value):
    with pytest.raises(GroupError, match=r"`peak` must be a finite number above 0. .* set `frozen: true`"):
        discriminative_rates(value, 3)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, True, False, None, "x", [1], 1j, 10**310])
def test_anything_but_a_rate_is_an_error_that_shows_the_value(value):
    with pytest.raises(GroupError, match="must be a finite number above 0") as caught:
        check_rate(value)

    assert f"Received: `{value!r}`" in str(caught.value)
    assert str(caught.value).startswith("`learning_rate` must")


@pytest.mark.parametrize("text", ["1e-4", "0.5", "3"])
def test_a_rate_that_yaml_read_as_text_gets_an_error_that_says_so(text):
    with pytest.raises(GroupError, match=r"That is text\. Write it without quotes and with a decimal point"):
        check_rate(text)


def test_the_error_of_a_rate_can_name_where_it_is_written():
    with pytest.raises(GroupError, match=r"^group `body`: `initial` must be"):
        check_rate(-1, "group `body`: `initial`")


@pytest.mark.parametrize("value", [1, 1e-300, np.float32(0.5), np.int64(2), Fraction(1, 3)])
def test_every_kind_of_real_number_is_a_rate(value):
    assert type(check_rate(value)) is float
    assert check_rate(value) == float(value)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, None, "3"])
@pytest.mark.parametrize("make", [lambda n: discriminative_rates(1.0, n), lambda n: spread_rates(0.1, 1.0, n)])
def test_a_number_of_groups_below_1_is_an_error(make, count):
    with pytest.raises(GroupError, match="`num_groups` must be a whole number >= 1"):
        make(count)


@pytest.mark.parametrize("decay", [0.5, 0, -2, math.nan, math.inf, True, "2.6"])
def test_a_decay_below_1_is_an_error(decay):
    with pytest.raises(GroupError, match=r"a finite number >= 1. Received: .*Give `2\.6`"):
        discriminative_rates(1.0, 3, decay=decay)


def test_a_decay_so_steep_that_a_rate_becomes_0_is_an_error():
    with pytest.raises(GroupError, match=r"over 1000 groups the first gets 0. Give a smaller `decay`"):
        discriminative_rates(1e-3, 1000)


def test_lengths_become_whole_steps():
    assert length_in_steps(7, "steps") == 7
    assert length_in_steps(7.0, "steps") == 7
    assert length_in_steps(2, "epochs", steps_per_epoch=13) == 26
    assert length_in_steps(0.5, "epochs", steps_per_epoch=13) == 6
    assert length_in_steps(0.1, "fraction", total_steps=200) == 20
    assert length_in_steps(1, "fraction", total_steps=200) == 200


@given(value=st.floats(1e-9, 1.0), whole=st.integers(1, 10**6))
def test_a_part_of_something_is_at_least_one_step_and_at_most_the_whole(value, whole):
    for unit in ("epochs", "fraction"):
        steps = length_in_steps(value, unit, steps_per_epoch=whole, total_steps=whole)

        assert type(steps) is int
        assert 1 <= steps <= whole
        assert abs(steps - value * whole) <= 1


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, None, "3"])
@pytest.mark.parametrize("unit", ["steps", "epochs", "fraction"])
def test_anything_but_a_length_is_an_error(unit, value):
    with pytest.raises(GroupError, match=f"A length in {unit} must be a finite number above 0"):
        length_in_steps(value, unit, steps_per_epoch=10, total_steps=10)


def test_half_a_step_and_more_than_the_whole_are_errors():
    with pytest.raises(GroupError, match=r"must be whole. Received: `2\.5`"):
        length_in_steps(2.5, "steps")
    with pytest.raises(GroupError, match=r"at most 1. Received: `1\.5`. Use `steps` or `epochs`"):
        length_in_steps(1.5, "fraction", total_steps=10)


@pytest.mark.parametrize(("unit", "name"), [("epochs", "steps_per_epoch"), ("fraction", "total_steps")])
def test_a_length_without_what_it_refers_to_is_an_error(unit, name):
    with pytest.raises(GroupError, match=f"A length in `{unit}` needs `{name}`"):
        length_in_steps(1, unit)
    with pytest.raises(GroupError, match=f"`{name}` must be a whole number >= 1"):
        length_in_steps(1, unit, steps_per_epoch=0, total_steps=0)


def test_an_unknown_unit_is_an_error_with_the_nearest_one():
    with pytest.raises(GroupError, match=r"`steps`, `epochs`, `fraction`\. Received: `epoch`\. Did you mean `epochs`"):
        length_in_steps(1, "epoch")


def test_the_arithmetic_needs_no_tensorflow():
    code = "import sys, finetune.groups.rate_spacing; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(peak=rates, n=sizes, layer_decay=st.floats(0.1, 1.0))
def test_layer_decay_is_the_rate_of_timm(peak, n, layer_decay):
    np.testing.assert_allclose(
        discriminative_rates(peak, n, layer_decay=layer_decay),
        [peak * layer_decay ** (n - 1 - depth) for depth in range(n)],
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 2.0, "layer_decay": 0.5}, "`decay` and `layer_decay` say the same thing. Received: `decay=2.0`"),
        ({"layer_decay": 2.6}, "above 0 and at most 1. Received: `2.6`. Give `0.75` as timm does"),
        ({"layer_decay": 0}, "above 0 and at most 1. Received: `0`"),
        ({"layer_decay": 1e-300}, "Give a larger `layer_decay`, or make fewer groups."),
    ],
)
def test_a_wrong_layer_decay_is_an_error_that_says_what_to_do(arguments, message):
    with pytest.raises(GroupError) as error:
        discriminative_rates(0.1, 4, **arguments)
    assert message in str(error.value)


BASE = {"stem": 1e-4, "body": 1e-3, "head": 1e-2}


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        (0.1, [1e-3, 1e-2, 0.1]),  # of the last group; the ratios stay
        (slice(1e-5, 1e-3), [1e-5, 1e-4, 1e-3]),
        (slice(1e-3), [1e-4, 1e-4, 1e-3]),
        (slice(None, 1e-3), [1e-4, 1e-4, 1e-3]),
        ({"body": 0.5}, [1e-4, 0.5, 1e-2]),
        ([1, 2, 3], [1, 2, 3]),
        ((1, 2, 3), [1, 2, 3]),
    ],
)
def test_rates_of_all_groups_are_written_in_several_forms(written, rates):
    assert rates_by_group(written, BASE) == pytest.approx(dict(zip(BASE, rates, strict=True)))


def test_a_slice_gives_a_single_group_its_high_end_as_in_fastai():
    assert rates_by_group(slice(1e-5, 1e-3), {"all": 1.0}) == rates_by_group(slice(1e-3), {"all": 1.0}) == {"all": 1e-3}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (slice(1e-3, None), r"is `slice\(low, high\)` or `slice\(high\)`"),
        (slice(1e-5, 1e-3, 2), r"Received: `slice\(1e-05, 0.001, 2\)`"),
        (slice(1e-3, 1e-5), "low to high"),
        (slice(0), "must be a finite number above 0"),
        ({"hed": 1.0}, "those of groups that are trained: .* Did you mean `head`"),
        ({"head": 0}, "the learning rate of `head` must be a finite number above 0"),
        ([1, 2], "Received 2 for 3 groups"),
        ("1e-3", "That is text"),
        (None, "must be a finite number"),
    ],
)
def test_rates_in_no_such_form_are_refused(written, message):
    with pytest.raises(GroupError, match=message):
        rates_by_group(written, BASE)
