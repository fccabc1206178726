"""A loss that is finite and far too large is told, against the loss before training or that of a guess."""

from math import log

import pytest

from finetune.training.divergence import divergence, loss_of_guess


def test_a_guess_has_the_loss_of_equal_probabilities():
    assert loss_of_guess("sparse_categorical_crossentropy", 10) == pytest.approx(log(10))
    assert loss_of_guess("CategoricalCrossentropy", 3) == pytest.approx(log(3))
    assert loss_of_guess("bce", 1) == pytest.approx(log(2))
    for loss, classes in [("mse", 3), ("categorical_hinge", 3), ("sparse_categorical_crossentropy", None), ("kld", 1)]:
        assert loss_of_guess(loss, classes) is None


def test_training_that_diverges_is_told():
    assert divergence(0.27, 7.9e17, log(10)) == (
        "the test loss is 7.9e+17 after training, and was 0.27 before and is 2.3 for a network that guesses: training has "
        "diverged. Lower the learning rates, or set `train.global_clipnorm: 1.0`"
    )
    # Pretrained weights with another scale of inputs: the loss was as absurd before.
    assert "and is 2.3 for a network that guesses:" in divergence(1e18, 7.9e17, log(10))
    assert "and was 2 before:" in divergence(2.0, 21.0)


def test_training_that_gets_worse_or_stays_bad_has_not_diverged():
    assert divergence(0.27, 2.0, log(10)) == ""
    assert divergence(30.0, 20.0, log(10)) == ""
    assert divergence(1e18, 7.9e17) == ""
    assert divergence(-5.0, 3.0) == ""
