"""Advice on targets that a network can be trained on, but hardly as it was meant."""

import pytest

from finetune.data.target_advice import advice_on_targets

CLASSES = {"class_names": ["a", "b", "c"], "rows_of_classes": {"train": [1, 1, 1]}}
SPARSE = "sparse_categorical_crossentropy"


def numbers(**spreads):
    return {"numbers": {name: {"mean": mean, "standard_deviation": spread} for name, (mean, spread) in spreads.items()}}


def test_outputs_that_are_never_a_target_are_told():
    assert list(advice_on_targets(CLASSES, SPARSE, 5)) == [
        "the network gives 5 classes, and the data have 3: `a`, `b`, `c`. Its outputs from number 3 on, counted from 0, "
        "are never a target. If they stand for no class, take `head: {classes: auto}`, or a network with as many "
        "outputs as classes"
    ]
    assert list(advice_on_targets(CLASSES, "categorical_crossentropy", 4))


def test_classes_without_an_output_are_told_before_a_run():
    [advice] = advice_on_targets(CLASSES, SPARSE, 2, output="kind")
    assert advice.startswith(
        "the network gives 2 classes for `kind`, and the data have 3: `a`, `b`, `c`. It cannot be "
    )


@pytest.mark.parametrize("width", [3, None])
def test_a_network_that_fits_or_is_not_known_needs_no_advice(width):
    assert not list(advice_on_targets(CLASSES, SPARSE, width))


def test_targets_far_from_the_outputs_are_told_with_the_remedy():
    [advice] = advice_on_targets(numbers(price=(2e5, 1e5)), "mean_squared_error", 1, 0.5)
    assert advice == (
        "the target `price` has the mean 2e+05 and the standard deviation 1e+05, and before training the network gives "
        "values of the size 0.5. Under `mean_squared_error` it takes very many steps to reach them, or diverges. Set "
        "`head: {standardize: true}`, which gives the head outputs of this mean and spread, or divide the target by a "
        "number"
    )


@pytest.mark.parametrize(("mean", "size"), [(3.0, 0.1), (2e5, 1e5), (2e5, None)])
def test_targets_within_reach_of_the_outputs_need_no_advice(mean, size):
    assert not list(advice_on_targets(numbers(y=(mean, 1.0)), "mse", 1, size))


def test_columns_of_unequal_spread_are_told():
    [advice] = advice_on_targets(numbers(rooms=(3.0, 1.0), price=(0.0, 500.0)), "mse", 2)
    assert "standard deviations (`rooms` 1, `price` 500)" in advice
    assert "nearly all of it is that of `price`" in advice
