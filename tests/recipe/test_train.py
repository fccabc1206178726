"""The `train` of a recipe: what its keys accept."""

import pytest
from pydantic import ValidationError

from finetune.recipe.train import Train


def train(**keys):
    return Train.model_validate({"loss": "mse", **keys})


def predicate(**keys):
    with pytest.raises(ValidationError) as caught:
        train(**keys)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_a_loss_and_metrics_are_names_with_arguments():
    settings = train(loss={"name": "huber", "delta": 0.5}, metrics="accuracy")
    assert (settings.loss.name, settings.loss.arguments) == ("huber", {"delta": 0.5})
    assert [metric.name for metric in settings.metrics] == ["accuracy"]


def test_only_one_way_to_clip_gradients_may_be_set():
    assert train(global_clipnorm=1.0).global_clipnorm == 1.0
    assert predicate(clipnorm=1.0, global_clipnorm=1.0) == (
        "takes at most one of `clipnorm`, `clipvalue`, `global_clipnorm`. Received: `clipnorm`, `global_clipnorm`"
    )


@pytest.mark.parametrize("steps", [1, 7, "auto"])
def test_steps_per_execution_is_a_number_or_auto(steps):
    assert train(steps_per_execution=steps).steps_per_execution == steps


@pytest.mark.parametrize("steps", [0, 1.5, True, "all"])
def test_any_other_steps_per_execution_are_an_error(steps):
    assert predicate(steps_per_execution=steps).startswith("must be a whole number of at least 1, or `auto`")


def test_the_cache_is_a_mode_and_false_is_off():
    assert [train(cache=mode).cache for mode in ("auto", "off", "memory", "disk", False)] == [
        *("auto", "off", "memory", "disk", "off"),
    ]
    assert predicate(cache="ram").startswith('is not a known value. Received: `"ram"`. Choose from `auto`')


def test_the_learning_rate_of_train_is_auto_or_search_or_absent():
    assert train(learning_rate="search").learning_rate == "search"
    assert train(learning_rate="auto").learning_rate == "auto"
    assert "may only be `auto`, which measures it before training, or `search`, which tries three." in predicate(
        learning_rate=0.1
    )


def test_only_one_way_to_clip_is_taken(complaint, valid):
    said = complaint("train", to={**valid["train"], "clipnorm": 1.0, "global_clipnorm": 1})
    rule = "`train` takes at most one of `clipnorm`, `clipvalue`, `global_clipnorm`."
    assert said == [f"{rule} Received: `clipnorm`, `global_clipnorm`."]


def test_steps_that_are_not_finite_stop_the_run_or_are_left_out():
    assert [train(non_finite=answer).non_finite for answer in ("stop", "skip", None)] == ["stop", "skip", None]
    assert train().non_finite is None
    for answer in ("rewind", True, 3):
        assert predicate(non_finite=answer).endswith("Choose from `stop`, `skip`, `null`.")


@pytest.mark.parametrize(("value", "kept"), [(1, 1), ("auto", "auto"), ("off", "off"), (False, "off")])
def test_groups_are_measured_every_so_many_steps_or_automatically_or_not(value, kept):
    assert train(log_every_steps=value).log_every_steps == kept


@pytest.mark.parametrize("value", [0, 2.5, True, "never"])
def test_any_other_log_every_steps_are_an_error(value):
    assert predicate(log_every_steps=value).startswith("must be a whole number of at least 1, `auto`, or `off`")


def test_the_evaluation_before_training_is_on_or_off_or_automatic():
    assert [train(evaluate_before=value).evaluate_before for value in (True, False, "auto")] == [True, False, "auto"]
    assert "`auto`" in predicate(evaluate_before="sometimes")


def test_kernels_are_native_unless_exact_ones_are_asked_for():
    assert (train().kernels, train(kernels="exact").kernels) == ("native", "exact")
    assert predicate(kernels="fast") == 'is not a known value. Received: `"fast"`. Choose from `exact`, `native`.'
