"""Optimizers, losses and metrics by name, with keyword arguments beside it."""

import pytest
from pydantic import ValidationError

from finetune.recipe.optimizers import OPTIMIZERS, Named, OptimizerSpec


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


@pytest.mark.parametrize("key", ["learning_rate", "global_clipnorm", "use_ema", "loss_scale_factor"])
def test_an_argument_that_belongs_elsewhere_is_an_error_that_says_where(key):
    assert predicate(OptimizerSpec, {"name": "sgd", key: 1}).startswith(("belongs", "cannot be set"))


def test_every_known_optimizer_is_accepted_by_its_own_name():
    assert [OptimizerSpec.model_validate(name).name for name in OPTIMIZERS] == list(OPTIMIZERS)
