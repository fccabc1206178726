"""Optimizers, losses and metrics by name, with keyword arguments beside it."""

import pytest
import yaml
from pydantic import ValidationError

from finetune.recipe.optimizers import _OF_TF1, OPTIMIZERS, Named, OptimizerSpec


def predicate(model, value):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(value)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


@pytest.mark.parametrize("written", ["huber", {"name": "huber", "delta": 0.5}])
def test_a_name_is_dumped_as_it_was_written(written):
    assert Named.model_validate(written).model_dump() == written


def test_something_that_has_no_name_is_an_error():
    assert predicate(Named, 3) == "must be a name, or a mapping with `name`. Received: `3`"


@pytest.mark.parametrize(
    ("written", "name"),
    [("AdamW", "adamw"), ("RMSprop", "rmsprop"), ("ScheduleFreeAdamW", "schedule_free_adamw"), ("rms_prop", "rmsprop")],
)
def test_other_spellings_of_an_optimizer_are_understood(written, name):
    assert OptimizerSpec.model_validate(written).name == name


def test_an_unknown_optimizer_gets_the_nearest_name():
    assert (
        predicate(OptimizerSpec, "adm")
        == 'is not a known value. Received: `"adm"`. Did you mean `adam` or `nadam` or `adamw`?'
    )


def test_a_name_of_tf1_gets_the_settings_with_its_results():
    said = 'is TF1\'s. With its results: `{name: tf1_rmsprop, rho: 0.9, momentum: 0.9}`. Received: `"RMSPropOptimizer"`'
    assert predicate(OptimizerSpec, "RMSPropOptimizer") == said
    for settings in _OF_TF1.values():
        OptimizerSpec.model_validate(yaml.safe_load(settings))


@pytest.mark.parametrize("key", ["learning_rate", "global_clipnorm", "use_ema", "loss_scale_factor"])
def test_an_argument_that_belongs_elsewhere_is_an_error_that_says_where(key):
    assert predicate(OptimizerSpec, {"name": "sgd", key: 1}).startswith(("belongs", "cannot be set"))


def test_every_known_optimizer_is_accepted_by_its_own_name():
    assert [OptimizerSpec.model_validate(name).name for name in OPTIMIZERS] == list(OPTIMIZERS)


@pytest.mark.parametrize(
    ("written", "name"),
    [("AdamW", "adamw"), ("RMSprop", "rmsprop"), ("ScheduleFreeAdamW", "schedule_free_adamw"), ("SGD", "sgd")],
)
def test_optimizers_are_known_however_they_are_spelled(written, name, read):
    assert read("groups", 1, "optimizer", to=written).groups[1].optimizer.name == name


def test_an_unknown_optimizer_is_offered_the_nearest(complaint):
    [said] = complaint("groups", 1, "optimizer", to="adamm")
    hint = "Did you mean `adam` or `nadam` or `adamw`?"
    assert said == f'`groups.head.optimizer` is not a known value. Received: `"adamm"`. {hint}'
    [said] = complaint("groups", 1, "optimizer", to={"name": "x"})
    assert all(f"`{name}`" in said for name in OPTIMIZERS)


def test_keyword_arguments_are_written_beside_the_name(read):
    written = {"name": "sgd", "momentum": 0.9, "clipnorm": None}
    optimizer = read("groups", 1, "optimizer", to=written).groups[1].optimizer
    assert (optimizer.name, optimizer.arguments) == ("sgd", {"momentum": 0.9, "clipnorm": None})
    loss = read("train", "loss", to={"name": "huber", "delta": 0.5}).train.loss
    assert (loss.name, loss.arguments) == ("huber", {"delta": 0.5})


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("learning_rate", "belongs beside `optimizer`, not inside it."),
        ("global_clipnorm", "belongs under `train`: it is for all groups together."),
        ("gradient_accumulation_steps", "belongs under `train`: it is for all groups together."),
        ("use_ema", "belongs under `train`: it is for all groups together."),
        ("loss_scale_factor", "cannot be set: `train.mixed_precision` takes care of it. Remove it."),
    ],
)
def test_an_argument_that_does_not_belong_in_an_optimizer_gets_an_error_with_its_right_place(complaint, key, where):
    assert complaint("groups", 1, "optimizer", to={"name": "sgd", key: 1}) == [f"`groups.head.optimizer.{key}` {where}"]
