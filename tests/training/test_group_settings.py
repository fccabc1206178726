"""The optimizers and rates of the groups of a `FineTuner`."""

import keras
import pytest

from finetune.errors import GroupError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.group_settings import first_rates, optimizer_template, scheduled_rate, settings_of_group

NAMES = ("body", "head")


def test_a_name_is_an_optimizer_at_the_default_rate_and_an_object_keeps_its_settings_and_rate():
    named, _ = optimizer_template("SGD", None)
    assert first_rates(NAMES, None, named, None, None) == {"body": 1e-3, "head": 1e-3}
    written, over_all = optimizer_template(keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0), None)
    assert over_all == {"global_clipnorm": 1.0}
    assert first_rates(NAMES, None, written, None, None) == {"body": 0.1, "head": 0.1}
    settings = settings_of_group(written, 0.05)
    assert (settings.optimizer_name, settings.optimizer.momentum, settings.optimizer.global_clipnorm) == (
        "sgd",
        0.9,
        None,
    )
    assert settings.peak == settings.rate_at(0) == 0.05


def test_that_of_the_model_is_taken_unless_it_belongs_to_other_groups():
    adam = keras.optimizers.Adam(1e-4)
    assert optimizer_template(None, keras.optimizers.LossScaleOptimizer(adam))[0] is adam
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    grouped = GroupedOptimizer({"all": (keras.optimizers.SGD(0.1), layer)})
    assert (
        type(optimizer_template(None, grouped)[0]).__name__
        == type(optimizer_template(None, None)[0]).__name__
        == "AdamW"
    )
    with pytest.raises(GroupError, match="Received a `GroupedOptimizer`"):
        optimizer_template(grouped, None)


def test_rates_are_spaced_by_either_decay():
    template, _ = optimizer_template("adamw", None)
    assert first_rates(NAMES, 1e-2, template, 2.0, None) == {"body": 5e-3, "head": 1e-2}
    assert first_rates(NAMES, 1e-2, template, None, 0.5) == {"body": 5e-3, "head": 1e-2}
    with pytest.raises(GroupError, match=r"space the rates below a number.*learning_rate=slice\(1, 2, None\)"):
        first_rates(NAMES, slice(1, 2), template, 2.0, None)


def test_an_optimizer_that_is_no_template_is_refused_with_what_to_write():
    with pytest.raises(GroupError, match=r"Received `adm`. Did you mean `adam"):
        optimizer_template("adm", None)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    with pytest.raises(GroupError, match=r"the schedule `CosineDecay`. Pass `learning_rate=` its highest rate"):
        first_rates(NAMES, None, keras.optimizers.SGD(schedule), None, None)


def test_a_schedule_takes_its_rate_and_its_length():
    assert scheduled_rate(None, 0.1, 10) == 0.1
    assert scheduled_rate("cosine_decay", 0.1, 10).get_config()["decay_steps"] == 10
    assert float(scheduled_rate("one_cycle", 0.1, 8)(2)) == pytest.approx(0.1)
    assert float(scheduled_rate({"schedule": "one_cycle", "warmup_fraction": 0.5}, 0.1, 8)(4)) == pytest.approx(0.1)
    decay = scheduled_rate({"schedule": "exponential_decay", "decay_rate": 0.1, "decay_steps": 5}, 1.0, 10)
    assert float(decay(5)) == pytest.approx(0.1)
    with pytest.raises(GroupError, match="how many batches an epoch has is unknown"):
        scheduled_rate("one_cycle", 0.1, 0)
