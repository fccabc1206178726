"""The table of the arguments of optimizers agrees with Keras, and values that compute nonsense are refused."""

import inspect

import keras
import pytest

from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop
from finetune.recipe.optimizer_arguments import ARGUMENTS

KERAS = {name.lower(): value for name, value in vars(keras.optimizers).items() if inspect.isclass(value)}
KINDS = {**KERAS, "momentum": Momentum, "tf1rmsprop": TF1RMSprop}
OF_ALL_GROUPS = {
    *("learning_rate", "name", "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency"),
    *("loss_scale_factor", "gradient_accumulation_steps", "kwargs", "self"),
}
OF_EVERY_OPTIMIZER = {"weight_decay", "clipnorm", "clipvalue"}


def signature(name):
    parameters = inspect.signature(KINDS[name.replace("_", "")]).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in OF_ALL_GROUPS}


def test_every_optimizer_of_keras_is_in_the_table():
    abstract = {"optimizer", "lossscaleoptimizer", "multioptimizer", "optimizermap"}
    assert {*KINDS} - abstract == {name.replace("_", "") for name in ARGUMENTS}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_those_of_the_installed_optimizer_and_its_defaults_are_allowed(name):
    assert {*ARGUMENTS[name]} == {*signature(name)} | OF_EVERY_OPTIMIZER
    for key, default in signature(name).items():
        assert ARGUMENTS[name][key].problem(default) == "", (key, default)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"name": "adam", "beta_1": 2}, "`groups.all.optimizer.beta_1` must be 0 or more and less than 1. Received: `2`."),
        ({"name": "adam", "beta_2": 1}, "`groups.all.optimizer.beta_2` must be 0 or more and less than 1. Received: `1`."),
        ({"name": "adam", "epsilon": -1}, "`groups.all.optimizer.epsilon` must be 0 or more. Received: `-1`."),
        ({"name": "adam", "epsilon": "tiny"}, '`groups.all.optimizer.epsilon` must be a number. Received: `"tiny"`.'),
        ({"name": "adam", "amsgrad": 1}, "`groups.all.optimizer.amsgrad` must be `true` or `false`. Received: `1`."),
        ({"name": "adamw", "weight_decay": -0.1}, "`groups.all.optimizer.weight_decay` must be 0 or more. Received: `-0.1`."),
        ({"name": "sgd", "weight_decay": [1]}, "`groups.all.optimizer.weight_decay` must be a number. Received: `[1]`."),
        ({"name": "sgd", "momentum": 3}, "`groups.all.optimizer.momentum` must be 0 or more and 1 or less. Received: `3`."),
        ({"name": "sgd", "clipnorm": 1e-300}, "`groups.all.optimizer.clipnorm` must be 1.2e-38 or more. Received: `1e-300`."),
        ({"name": "rmsprop", "rho": -0.1}, "`groups.all.optimizer.rho` must be 0 or more and less than 1. Received: `-0.1`."),
        ({"name": "ftrl", "learning_rate_power": 1}, "`groups.all.optimizer.learning_rate_power` must be 0 or less. Received: `1`."),
        ({"name": "lion", "beta_1": 0}, "`groups.all.optimizer.beta_1` must be greater than 0 and less than 1. Received: `0`."),
        ({"name": "muon", "ns_steps": 2.5}, "`groups.all.optimizer.ns_steps` must be a whole number. Received: `2.5`."),
        ({"name": "muon", "muon_a": 1e300}, "`groups.all.optimizer.muon_a` must be a finite number. Received: `1e+300`."),
        ({"name": "muon", "exclude_layers": "a"}, '`groups.all.optimizer.exclude_layers` must be a list of names. Received: `"a"`.'),
        ({"name": "rmsprop", "decay": 0.9}, "`groups.all.optimizer.decay` is called `rho` in `rmsprop`. `tf1_rmsprop` has TF1's results."),
        ({"name": "tf1_rmsprop", "rmsprop_decay": 0.9}, "`groups.all.optimizer.rmsprop_decay` is called `rho` in `tf1_rmsprop`."),
        ({"name": "ftrl", "l1": 0.1}, "`groups.all.optimizer.l1` is called `l1_regularization_strength` in `ftrl`."),
        ({"name": "sgd", "decay": 0.1}, "`groups.all.optimizer.decay` is not an argument of `sgd`. It takes `momentum`, `nesterov`, `weight_decay`, `clipnorm`, `clipvalue`."),
        ({"name": "sgd", "momentun": 1}, "`groups.all.optimizer.momentun` is not an argument of `sgd`. It takes `momentum`, `nesterov`, `weight_decay`, `clipnorm`, `clipvalue`. Did you mean `momentum`?"),
    ],
)  # fmt: skip
def test_a_value_with_which_nothing_sensible_is_computed_is_refused(complaint, optimizer, told):
    groups = [{"name": "all", "rest": True, "optimizer": optimizer, "learning_rate": 0.1}]
    assert complaint("groups", to=groups) == [told]


def test_a_problem_of_a_strategy_is_reported_once(complaint):
    strategy = {"by": "layer", "peak": 1e-2, "decay": 2, "optimizer": {"name": "adam", "beta_1": 2}}
    assert complaint("groups", to=strategy) == [
        "`groups.optimizer.beta_1` must be 0 or more and less than 1. Received: `2`."
    ]


@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_rates_and_norms_that_float32_cannot_hold_are_refused(complaint, value):
    rule = f"must be between 1.2e-38 and 3.4e38: in float32, other numbers become 0 or infinite. Received: `{value}`."
    for key in ("global_clipnorm", "clipnorm", "clipvalue"):
        assert complaint("train", key, to=value) == [f"`train.{key}` {rule}"]
    assert complaint("groups", 1, "learning_rate", to=value) == [f"`groups.head.learning_rate` {rule}"]
