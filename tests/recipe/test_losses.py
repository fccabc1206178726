"""Losses and metrics of a recipe: one for all, or by the name of the output."""

import pytest
from pydantic import ValidationError

from finetune.recipe.losses import by_output
from finetune.recipe.train import Train


def train(**keys):
    return Train.model_validate(keys)


def predicate(**keys):
    with pytest.raises(ValidationError) as caught:
        train(**keys)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_without_a_loss_loss_and_metrics_are_chosen():
    for settings in (train(), train(loss="auto")):
        assert settings.loss.name == "auto"
        assert [metric.name for metric in settings.metrics] == ["auto"]
    assert train(loss="auto", metrics=["recall"]).metrics[0].name == "recall"
    assert train(loss="mse").metrics == ()


def test_outputs_have_losses_and_metrics_by_their_names():
    settings = train(loss={"a": "mse", "b": {"name": "huber", "delta": 2}}, metrics={"a": "mae"})
    assert {name: loss.name for name, loss in by_output(settings.loss).items()} == {"a": "mse", "b": "huber"}
    assert by_output(settings.metrics)["a"][0].name == "mae"
    assert Train.model_validate(settings.model_dump()) == settings


def test_a_mapping_with_a_name_is_a_single_loss():
    assert by_output(train(loss={"name": "huber", "delta": 2}).loss)[""].arguments == {"delta": 2}


def test_auto_takes_no_arguments_and_outputs_need_names():
    assert predicate(loss={"name": "auto", "delta": 1}).startswith("takes no arguments where it is `auto`")
    assert predicate(loss={}) == "must name the outputs of the network. Received: `{}`"


def test_labels_are_smoothed_in_one_place():
    assert train(loss="mse", label_smoothing=0.1).label_smoothing == 0.1
    both = {"loss": {"a": "mse", "b": {"name": "bce", "label_smoothing": 0.1}}, "label_smoothing": 0.2}
    assert predicate(**both) == "is an argument of `loss: bce`, too. Remove one of the two"
