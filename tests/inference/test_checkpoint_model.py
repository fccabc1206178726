"""A run that is not finished has the network of its recipe, with the weights of a checkpoint."""

import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.inference.checkpoint_choice import ChosenWeights, choose_weights
from finetune.inference.checkpoint_model import model_of_recipe, put_weights
from finetune.inference.fine_tuned import load


def same(left, right):
    return all((a.numpy() == b.numpy()).all() for a, b in zip(left.weights, right.weights, strict=True))


def test_the_best_weights_of_a_stopped_run_are_those_that_it_would_have_ended_with(best_kept):
    finished, stopped = (load(best_kept[0]), load(best_kept[1], checkpoint="best"))
    assert same(finished.model, stopped.model)
    assert stopped.weights.startswith("after epoch ")
    assert finished.weights == ""
    assert stopped.evaluate().metrics == finished.evaluate().metrics
    last = load(best_kept[1], checkpoint="last")
    assert not same(last.model, stopped.model)
    assert same(last.model, load(best_kept[1], checkpoint="last.weights.h5").model)
    with pytest.raises(FinetuneError, match=r"or take the newest, after epoch 4 of 6: `--checkpoint last`"):
        load(best_kept[1])


def test_weights_of_another_network_change_nothing(best_kept):
    model = model_of_recipe(best_kept[1])
    before = [weight.numpy() for weight in model.weights]
    chosen = choose_weights(best_kept[1], "last")
    name = next(iter(chosen.arrays))
    other = {**chosen.arrays, name: np.zeros((3, 3, 3))}
    with pytest.raises(
        FinetuneError,
        match=r"The weights of a checkpoint are those .* has shape \(3, 3, 3\) in it and .*: bring them back",
    ):
        put_weights(model, ChosenWeights(chosen.file, chosen.said, other))
    with pytest.raises(FinetuneError, match="does not fit: it has no `"):
        put_weights(model, ChosenWeights(chosen.file, chosen.said, {"a": np.zeros(1)}))
    with pytest.raises(FinetuneError, match="does not fit: "):
        put_weights(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(9)]),
            choose_weights(best_kept[1], "last.weights.h5"),
        )
    assert all((weight.numpy() == old).all() for weight, old in zip(model.weights, before, strict=True))
