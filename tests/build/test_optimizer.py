import inspect

import keras
import numpy as np
import pytest

from finetune.build.optimizer import make_optimizer
from finetune.errors import RecipeError
from finetune.groups.layer_tree import layer_tree
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_rmsprop import TF1RMSprop
from finetune.recipe.optimizers import OPTIMIZERS, OptimizerSpec
from finetune.recipe.train import Train

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_every_optimizer_of_the_schema_exists_and_takes_a_step_in_a_group(recipe, lay_out, tmp_path):
    parts = [keras.layers.Dense(6, name=f"with_{name}") for name in OPTIMIZERS]
    keras.Sequential([keras.Input((6,)), *parts]).save(tmp_path / "many.keras")
    groups = ", ".join(
        f"{{name: {name}, prefixes: with_{name}, optimizer: {name}, learning_rate: 0.01}}" for name in OPTIMIZERS
    )
    layout = lay_out(recipe, f"model.keras_file={tmp_path / 'many.keras'}", f"groups=[{groups}]")
    model = layout.model
    assert list(layout.settings) == list(OPTIMIZERS)
    before = [kernel.numpy() for kernel in model.trainable_variables]
    gradients = [np.ones(variable.shape, "float32") for variable in model.trainable_variables]
    model.optimizer.apply(gradients, model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.isfinite(variable.numpy()).all(), variable.path
        assert not np.array_equal(old, variable.numpy()), variable.path


def test_arguments_reach_the_optimizer_and_whole_numbers_become_floats(recipe, lay_out):
    model = lay_out(recipe, "groups.body.optimizer={name: rmsprop, rho: 0.5, momentum: 0, centered: true}").model
    body = child(model, "body")
    assert (body.rho, body.momentum, body.centered) == (0.5, 0.0, True)
    assert type(body.momentum) is float


def test_the_rmsprop_of_tf1_is_another_than_that_of_keras(recipe, lay_out):
    ours = child(lay_out(recipe, "groups.body.optimizer={name: tf1_rmsprop, momentum: 0.9, epsilon: 1}").model, "body")
    assert (type(ours), ours.rho, ours.momentum, ours.epsilon) == (TF1RMSprop, 0.9, 0.9, 1.0)
    theirs = child(lay_out(recipe, "groups.body.optimizer={name: rmsprop, momentum: 0.9}").model, "body")
    assert type(theirs) is keras.optimizers.RMSprop


def test_what_every_optimizer_takes_momentum_takes_too(recipe, lay_out):
    layout = lay_out(recipe, "groups.body.optimizer={name: momentum, weight_decay: 0.1, clipnorm: 1}")
    body = child(layout.model, "body")
    assert (body.weight_decay, body.clipnorm) == (0.1, 1)
    assert layout.settings["body"].weight_decay == 0.1


def test_what_keras_says_of_an_argument_is_passed_on():
    with pytest.raises(RecipeError, match="does not accept its arguments"):
        make_optimizer(OptimizerSpec.model_construct(name="sgd", arguments={"momentum": 3.0}), 0.1)


def child(model, name):
    return model.optimizer.group_optimizers[name]


def decayed(model):
    """Names of the weights that one step with gradients of 0 makes smaller."""
    leaves = [leaf for leaf in layer_tree(model).leaves if leaf.variable.trainable]
    for leaf in leaves:
        leaf.variable.assign(np.ones(leaf.variable.shape, "float32"))
    variables = model.trainable_variables
    model.optimizer.apply([np.zeros(variable.shape, "float32") for variable in variables], variables)
    return [leaf.name for leaf in leaves if (leaf.variable.numpy() < 1).all()]


@pytest.mark.parametrize(
    "optimizer", ["adamw", "{name: sgd, weight_decay: 0.1}", "{name: momentum, weight_decay: 0.1}"]
)
def test_weight_decay_skips_biases_and_normalization(recipe, lay_out, optimizer):
    layout = lay_out(recipe, f"groups=[{{name: all, rest: true, optimizer: {optimizer}, learning_rate: 0.1}}]")
    assert decayed(layout.model) == ["stem/kernel", "body/kernel", "head/kernel"]
    assert layout.settings["all"].weight_decay == (0.004 if optimizer == "adamw" else 0.1)


def test_weight_decay_is_for_all_weights_when_the_recipe_says_so(recipe, lay_out):
    group = "{name: all, rest: true, optimizer: adamw, learning_rate: 0.1, decay_bias_and_norm: true}"
    model = lay_out(recipe, f"groups=[{group}]").model
    assert len(decayed(model)) == 8


def test_what_is_for_all_groups_together_reaches_the_one_optimizer(recipe, lay_out):
    model = lay_out(
        recipe,
        "train.global_clipnorm=0.5",
        "train.gradient_accumulation_steps=3",
        "train.use_ema=true",
        "train.ema_momentum=0.9",
        "train.merge_rows=true",
    ).model
    optimizer = model.optimizer
    assert (optimizer.global_clipnorm, optimizer.gradient_accumulation_steps) == (0.5, 3)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    assert optimizer.merge_rows is True


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue"])
def test_clipping_of_single_gradients_reaches_the_optimizer(recipe, lay_out, clip):
    model = lay_out(recipe, f"train.{clip}=0.25").model
    assert getattr(model.optimizer, clip) == 0.25


def test_every_key_of_train_that_the_grouped_optimizer_takes_reaches_it(recipe, lay_out):
    keys = {*inspect.signature(GroupedOptimizer).parameters} & {*Train.model_fields}
    assert keys == {
        *("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps", "use_ema", "ema_momentum"),
        "merge_rows",
    }
    layout = lay_out(recipe)
    assert all(getattr(layout.model.optimizer, key) == getattr(layout.recipe.train, key) for key in keys)


def test_the_optimizer_of_a_group_is_the_child_that_trains_it(recipe, lay_out):
    layout = lay_out(recipe)
    for name, settings in layout.settings.items():
        assert child(layout.model, name) is settings.optimizer


@pytest.mark.parametrize(
    ("rate", "peak"),
    [
        ("0.25", 0.25),
        ("{schedule: exponential_decay, initial: 0.5, decay_steps: 4, decay_rate: 0.5, warmup_steps: 7}", 0.5),
        ("{schedule: one_cycle, peak: 0.75}", 0.75),
        ("{schedule: piecewise_constant_decay, values: [0.1, 0.3, 0.2], boundaries: [1, 2]}", 0.3),
    ],
)
def test_the_peak_of_a_group_is_the_first_or_highest_rate_that_is_written(recipe, lay_out, rate, peak):
    layout = lay_out(recipe, f"groups.head.learning_rate={rate}")
    assert layout.settings["head"].peak == peak
    assert layout.peaks == {"body": 1e-2, "head": peak}


def test_a_schedule_that_overflows_is_refused(recipe, problem):
    rate = "{schedule: exponential_decay, initial: 1e-3, decay_steps: 1, decay_rate: 1e30}"
    assert "is `inf` in step 5 of 8" in problem(recipe, f"groups.body.learning_rate={rate}")
