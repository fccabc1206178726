"""Numbers are written short, and in one way everywhere."""

import pytest

from finetune.results.formatting import rate_text, shape_text, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 bytes"), (12, "12 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1536, "1.54 kB")),
        *((230_400, "230 kB"), (999_999, "1 MB"), (1e9, "1 GB"), (3.2e12, "3.2 TB"), (5e15, "5e+03 TB")),
    ],
)
def test_sizes_have_three_digits_and_the_unit_that_fits(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(("shape", "text"), [((), "scalar"), ((3,), "3"), ([3, 3, 8], "3x3x8")])
def test_shapes_are_their_sizes_joined_and_a_number_is_a_scalar(shape, text):
    assert shape_text(shape) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.00123, "1.2e-3"), (0.25, "0.25"), (0.1, "0.1"), (1.6, "1.6"), (10, "10"), (5e-11, "5.0e-11"), (3e5, "3.0e5")],
)
def test_rates_have_two_digits_and_a_short_exponent(rate, text):
    assert rate_text(rate) == text
