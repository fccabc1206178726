import inspect
from math import ceil

import keras
import numpy as np
import pytest

from finetune import build, network
from finetune.build.data import RunLength
from finetune.data.arrays import Examples
from finetune.errors import FinetuneError, GroupError, RecipeError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.spacing import discriminative_rates, spread_rates
from finetune.optimizers.momentum import Momentum
from finetune.optimizers.schedules import chain, make_schedule, schedule_functions, with_warmup
from finetune.recipe.learning_rates import SCHEDULES, read_schedule
from finetune.recipe.loader import load_recipe
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.training.freezing import freeze

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

LENGTH = RunLength(epochs=10, steps_per_epoch=20)
STEPS = (0, 1, 10, 19, 20, 39, 40, 41, 50, 65, 99, 100, 101, 150, 199, 200, 250)


def prepared(recipe, *overrides):
    """Goes from a recipe to a compiled model, as a run does; returns the model and its groups' settings."""
    wanted = load_recipe(recipe, overrides=overrides)
    with build.precision(wanted):
        model = network.build_model(wanted)
        tree = layer_tree(model)
        plans = build.plan_groups(wanted, tree)
        groups = build.build_groups(wanted, plans, tree)
        settings = build.build_settings(plans, build.run_length(wanted, build.build_examples(wanted)))
        freeze(model, groups)
        build.compile_model(wanted, model, build.build_optimizer(wanted, plans, groups, settings))
    return model, settings


def problem(recipe, *overrides, kind=RecipeError):
    with pytest.raises(kind) as error:
        prepared(recipe, *overrides)
    return str(error.value)


def child(model, name):
    return next(one for one in model.optimizer.optimizers if one.name == name)


def rates_of(schedule):
    return [float(schedule(step)) for step in STEPS]


# -- Schedules --------------------------------------------------------------------------------------------------------

DECAY = {"initial": 1e-2, "decay_rate": 0.5}
# What a recipe writes with lengths in steps, and the arguments of the function it stands for.
WRITTEN = {
    "exponential_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "natural_exponential_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "inverse_time_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "polynomial_decay": {"initial": 1e-2, "decay_steps": 50, "end": 1e-3, "power": 2.0, "cycle": True},
    "piecewise_constant_decay": {"boundaries": [20, 100], "values": [1e-2, 1e-3, 1e-4]},
    "cosine_decay": {"initial": 1e-2, "decay_steps": 50, "alpha": 0.1},
    "cosine_decay_restarts": {"initial": 1e-2, "first_decay_steps": 50, "t_mul": 1.5, "m_mul": 0.9, "alpha": 0.1},
    "inverse_square_root": {"peak": 1e-2, "warmup_steps": 50},
    "slanted_triangular": {"peak": 1e-2, "total_steps": 50, "cut_fraction": 0.2, "ratio": 10.0},
    "one_cycle": {"peak": 1e-2, "total_steps": 50, "warmup_fraction": 0.3, "div": 10.0, "final_div": 1e3},
    "constant": {"initial": 1e-2},
}


def built(name, **written):
    return build.build_rate(read_schedule({"schedule": name, **written}), LENGTH)


def test_every_schedule_of_the_schema_is_tried_here():
    assert {*WRITTEN, "chain"} == set(SCHEDULES)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"chain"}))
def test_a_schedule_of_a_recipe_is_the_function_of_that_name_with_all_its_arguments(name):
    assert rates_of(built(name, **WRITTEN[name])) == rates_of(make_schedule(name, **WRITTEN[name]))


def test_the_schema_and_the_functions_name_the_same_schedules_and_arguments():
    functions = schedule_functions()
    assert set(SCHEDULES) == set(functions) - {"with_warmup"}
    leading = {"warmup_steps", "warmup_from"}
    for name, model in SCHEDULES.items():
        written = {field for field in model.model_fields if not field.endswith(("_epochs", "_fraction"))}
        written |= {
            field for field in ("warmup_fraction", "cut_fraction") if name in ("one_cycle", "slanted_triangular")
        }
        written &= {*model.model_fields}
        written -= {"schedule"} | (leading if "warmup_from" in model.model_fields else set())
        written -= {"warmup_fraction"} if "warmup_steps" in model.model_fields else set()
        assert written == set(inspect.signature(functions[name]).parameters), name


def test_the_schema_and_the_functions_have_the_same_defaults():
    for name, model in SCHEDULES.items():
        for parameter in inspect.signature(schedule_functions()[name]).parameters.values():
            field = model.model_fields[parameter.name]
            if parameter.default is not parameter.empty:
                assert field.default == parameter.default, f"{name}.{parameter.name}"
            elif not parameter.name.endswith("_steps") and parameter.name != "boundaries":
                assert field.is_required(), f"{name}.{parameter.name}"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *((name, "decay") for name in SCHEDULES if "decay_steps" in WRITTEN.get(name, {})),
        ("cosine_decay_restarts", "first_decay"),
        ("inverse_square_root", "warmup"),
        ("slanted_triangular", "total"),
        ("one_cycle", "total"),
    ],
)
def test_a_length_in_epochs_or_as_a_fraction_of_the_run_is_the_same_in_steps(name, stem):
    rest = {key: value for key, value in WRITTEN[name].items() if key != f"{stem}_steps"}
    in_steps = rates_of(built(name, **rest, **{f"{stem}_steps": 50}))
    assert rates_of(built(name, **rest, **{f"{stem}_epochs": 2.5})) == in_steps
    assert rates_of(built(name, **rest, **{f"{stem}_fraction": 0.25})) == in_steps


@pytest.mark.parametrize("name", ["slanted_triangular", "one_cycle"])
def test_a_schedule_of_the_whole_run_is_as_long_as_the_run(name):
    assert rates_of(built(name, peak=1e-2)) == rates_of(make_schedule(name, peak=1e-2, total_steps=200))


def test_boundaries_have_three_spellings():
    values = [1e-2, 1e-3, 1e-4]
    expected = rates_of(make_schedule("piecewise_constant_decay", boundaries=[20, 100], values=values))
    assert rates_of(built("piecewise_constant_decay", values=values, boundaries_epochs=[1, 5])) == expected
    assert rates_of(built("piecewise_constant_decay", values=values, boundaries_fraction=[0.1, 0.5])) == expected


@pytest.mark.parametrize("warmup", [{"warmup_steps": 40}, {"warmup_epochs": 2}, {"warmup_fraction": 0.2}])
@pytest.mark.parametrize("name", sorted(name for name in WRITTEN if "warmup_from" in SCHEDULES[name].model_fields))
def test_a_warm_up_goes_in_front_of_any_schedule_that_has_none_of_its_own(name, warmup):
    plain = make_schedule(name, **WRITTEN[name])
    expected = rates_of(with_warmup(plain, 40, start=0.25))
    assert rates_of(built(name, **WRITTEN[name], **warmup, warmup_from=0.25)) == expected


def test_a_chain_is_made_of_schedules_each_with_its_own_lengths():
    parts = [
        {"schedule": "constant", "initial": 1e-3, "warmup_epochs": 1},
        {"schedule": "cosine_decay", "initial": 1e-2, "decay_fraction": 0.25},
    ]
    expected = chain(
        [
            with_warmup(make_schedule("constant", initial=1e-3), 20),
            make_schedule("cosine_decay", initial=1e-2, decay_steps=50),
        ],
        [60],
    )
    assert rates_of(built("chain", schedules=parts, boundaries_epochs=[3])) == rates_of(expected)


def test_a_number_stays_a_number():
    assert build.build_rate(1, LENGTH) == 1.0


BROKEN = "{schedule: piecewise_constant_decay, values: [1, 2, 3], boundaries_fraction: [0.01, 0.02]}"


def test_lengths_that_fall_together_in_a_short_run_are_told_with_place_and_group(recipe):
    assert problem(recipe, f"groups.body.learning_rate={BROKEN}").startswith(
        "tiny.yaml:6:5: group `body`: schedule `piecewise_constant_decay`: `boundaries` must be rising whole numbers "
    )


# -- Groups -----------------------------------------------------------------------------------------------------------


def test_a_group_list_keeps_its_order_and_its_names(recipe):
    model, settings = prepared(recipe)
    assert [one.name for one in model.optimizer.optimizers] == ["body", "head"]
    assert {name: one.optimizer for name, one in settings.items()} == {"body": "momentum", "head": "adamw"}
    assert isinstance(child(model, "body"), Momentum)
    assert isinstance(child(model, "head"), keras.optimizers.AdamW)


@pytest.mark.parametrize("by", ["layer", "block"])
def test_a_strategy_with_peak_and_decay_gives_every_group_its_share_of_the_one_above(recipe, by):
    _, settings = prepared(recipe, f"groups={{by: {by}, peak: 1e-2, decay: 2.6, optimizer: sgd}}")
    rates = [one.rate_at(0) for one in settings.values()]
    assert rates == pytest.approx(discriminative_rates(1e-2, len(rates), decay=2.6))
    assert list(settings) == (["stem", "bn", "body", "head"] if by == "layer" else ["stem", "body", "head"])


def test_a_strategy_with_a_spread_is_geometric_between_its_ends(recipe):
    _, settings = prepared(recipe, "groups={by: layer, spread: [1e-5, 1e-2], optimizer: sgd}")
    rates = [one.rate_at(7) for one in settings.values()]
    assert rates == pytest.approx(spread_rates(1e-5, 1e-2, 4))
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ("{schedule: cosine_decay, decay_fraction: 1.0}", "initial"),
        ("{schedule: one_cycle, warmup_fraction: 0.5}", "peak"),
    ],
)
def test_a_strategy_gives_its_schedule_to_every_group_at_the_groups_own_rate(recipe, shape, field):
    groups = f"groups={{by: layer, peak: 1e-2, decay: 2, optimizer: sgd, learning_rate: {shape}}}"
    _, settings = prepared(recipe, groups)
    first, *_, last = settings.values()
    assert first.rate_at(3) == pytest.approx(last.rate_at(3) / 8)
    assert max(last.rate_at(step) for step in range(8)) == pytest.approx(1e-2)
    assert last.rate_at(7) < last.rate_at(4)


def test_rates_too_small_for_a_number_are_told_with_their_place(recipe):
    assert problem(recipe, "groups={by: layer, peak: 1e-300, decay: 1e300, optimizer: sgd}").startswith(
        "--set groups: `groups`: Every group needs a learning rate above 0."
    )


def test_a_selector_that_matches_nothing_is_told_with_its_line_and_column_and_the_nearest_name(recipe):
    text = recipe.read_text()
    recipe.write_text(text.replace("prefixes: [body]", "prefixes: [bdy]").replace("[stem, bn]", "[stm, bn]"))
    lines = problem(recipe, kind=GroupError).splitlines()
    assert lines == [
        "tiny.yaml:5:28: group `stem` matches nothing: `prefixes: [stm]`. The model's top layers are `stem`, `bn`, "
        "`body`, `head`. Did you mean `stem`?",
        "tiny.yaml:7:15: group `body` matches nothing: `prefixes: [bdy]`. The model's top layers are `stem`, `bn`, "
        "`body`, `head`. Did you mean `body`?",
    ]


def test_weights_in_no_group_are_told_with_the_place_of_the_groups(recipe):
    recipe.write_text(recipe.read_text().replace("rest: true", "prefixes: [head/bias]"))
    message = problem(recipe, kind=GroupError)
    assert message.startswith("tiny.yaml:5:3: Every trainable variable must be in a group, and 1 of 8 are in none")
    assert "`head/kernel`" in message


@pytest.mark.parametrize(
    ("selector", "value"), [("variables", '"0:40"'), ("layers", "9"), ("regex", '"head/.*/x"'), ("prefixes", "a")]
)
def test_every_kind_of_selector_is_placed(recipe, selector, value):
    recipe.write_text(recipe.read_text().replace("prefixes: [body]", f"{selector}: {value}"))
    assert problem(recipe, kind=GroupError).startswith(f"tiny.yaml:7:{len(selector) + 7}: group `body`")


# -- Optimizers -------------------------------------------------------------------------------------------------------


def test_every_optimizer_of_the_schema_exists_and_takes_a_step_in_a_group(recipe, tmp_path):
    parts = [keras.layers.Dense(4, name=f"with_{name}") for name in OPTIMIZERS]
    keras.Sequential([keras.Input((4,)), *parts]).save(tmp_path / "many.keras")
    groups = ", ".join(
        f"{{name: {name}, prefixes: with_{name}, optimizer: {name}, learning_rate: 0.01}}" for name in OPTIMIZERS
    )
    model, settings = prepared(recipe, f"model.keras_file={tmp_path / 'many.keras'}", f"groups=[{groups}]")
    assert list(settings) == list(OPTIMIZERS)
    before = [kernel.numpy() for kernel in model.trainable_variables]
    gradients = [np.ones(variable.shape, "float32") for variable in model.trainable_variables]
    model.optimizer.apply(gradients, model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.isfinite(variable.numpy()).all(), variable.path
        assert not np.array_equal(old, variable.numpy()), variable.path


def test_arguments_reach_the_optimizer_and_whole_numbers_become_floats(recipe):
    model, _ = prepared(recipe, "groups.body.optimizer={name: rmsprop, rho: 0.5, momentum: 0, centered: true}")
    body = child(model, "body")
    assert (body.rho, body.momentum, body.centered) == (0.5, 0.0, True)
    assert type(body.momentum) is float


def test_what_every_optimizer_takes_momentum_takes_too(recipe):
    model, settings = prepared(recipe, "groups.body.optimizer={name: momentum, weight_decay: 0.1, clipnorm: 1}")
    assert (child(model, "body").weight_decay, child(model, "body").clipnorm) == (0.1, 1)
    assert settings["body"].weight_decay == 0.1


def test_an_unknown_argument_is_told_with_those_there_are_and_the_nearest(recipe):
    assert problem(recipe, "groups.body.optimizer={name: sgd, momentun: 0.9}") == (
        "tiny.yaml:6:5: group `body`: `sgd` does not take `momentun`. It takes `momentum`, `nesterov`, `weight_decay`, "
        "`clipnorm`, `clipvalue`. Did you mean `momentum`?"
    )


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("{name: adam, epsilon: tiny}", "`epsilon: tiny`. The usual values are `epsilon: 1e-07`."),
        ("{name: sgd, nesterov: 1}", "`nesterov: 1`. The usual values are `nesterov: False`."),
        ("{name: sgd, weight_decay: [1]}", "`weight_decay: [1]`. The usual values are `weight_decay: None`."),
        ("{name: adam, beta_1: true}", "`beta_1: True`. The usual values are `beta_1: 0.9`."),
    ],
)
def test_an_argument_of_another_kind_is_told_before_anything_runs(recipe, optimizer, told):
    assert told in problem(recipe, f"groups.body.optimizer={optimizer}")


def test_an_argument_out_of_its_bounds_is_told_with_what_keras_says(recipe):
    assert problem(recipe, "groups.body.optimizer={name: sgd, momentum: 3}") == (
        "tiny.yaml:6:5: group `body`: `sgd` does not accept its arguments. Keras says: `momentum` must be a float "
        "between [0, 1]."
    )


def test_the_problems_of_all_groups_are_told_at_once(recipe):
    overrides = ("groups.body.optimizer={name: sgd, a: 1}", "groups.head.optimizer={name: sgd, b: 1}")
    assert [line[:32] for line in problem(recipe, *overrides).splitlines()] == [
        "tiny.yaml:6:5: group `body`: `sg",
        "tiny.yaml:10:5: group `head`: `s",
    ]


def test_a_problem_of_a_strategy_is_told_once_and_not_for_every_layer(recipe):
    message = problem(recipe, "groups={by: layer, peak: 1e-2, decay: 2, optimizer: {name: sgd, momentun: 1}}")
    assert message.startswith("--set groups: `groups`: `sgd` does not take `momentun`.")
    assert "\n" not in message


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
def test_weight_decay_skips_biases_and_normalization(recipe, optimizer):
    model, settings = prepared(
        recipe, f"groups=[{{name: all, rest: true, optimizer: {optimizer}, learning_rate: 0.1}}]"
    )
    assert decayed(model) == ["stem/kernel", "body/kernel", "head/kernel"]
    assert settings["all"].weight_decay == (0.004 if optimizer == "adamw" else 0.1)


def test_weight_decay_is_for_all_weights_when_the_recipe_says_so(recipe):
    group = "{name: all, rest: true, optimizer: adamw, learning_rate: 0.1, decay_bias_and_norm: true}"
    model, _ = prepared(recipe, f"groups=[{group}]")
    assert len(decayed(model)) == 8


def test_what_is_for_all_groups_together_reaches_the_one_optimizer(recipe):
    model, _ = prepared(
        recipe,
        "train.global_clipnorm=0.5",
        "train.gradient_accumulation_steps=3",
        "train.use_ema=true",
        "train.ema_momentum=0.9",
    )
    optimizer = model.optimizer
    assert (optimizer.global_clipnorm, optimizer.gradient_accumulation_steps) == (0.5, 3)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue"])
def test_clipping_of_single_gradients_reaches_the_optimizer(recipe, clip):
    model, _ = prepared(recipe, f"train.{clip}=0.25")
    assert getattr(model.optimizer, clip) == 0.25


def test_what_keras_compiles_is_what_the_recipe_says(recipe):
    model, _ = prepared(recipe, "train.steps_per_execution=3", "train.jit_compile=true")
    assert model.steps_per_execution == 3
    assert model.jit_compile is True


# -- Losses and metrics -----------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(recipe, tiny):
    def compile_with(*overrides):
        model = tiny()
        build.compile_model(load_recipe(recipe, overrides=overrides), model, keras.optimizers.SGD())
        return model

    return compile_with


def logged(model):
    """The names in the logs after one evaluation."""
    model.run_eagerly = True
    x, y = np.zeros((6, 6), "float32"), np.arange(6) % 3
    return set(model.evaluate(x, y, verbose=0, return_dict=True))


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"])
def test_a_loss_is_known_in_snake_case_and_by_its_class(compiled, loss):
    assert logged(compiled(f"train.loss={loss}")) == {"loss", "accuracy"}


def test_a_loss_takes_arguments(recipe):
    model, _ = prepared(
        recipe, "train.loss={name: sparse_categorical_crossentropy, from_logits: true, ignore_class: 2}"
    )
    config = model.loss.get_config()
    assert (config["from_logits"], config["ignore_class"]) == (True, 2)


def test_metrics_are_known_by_every_name_of_keras_and_logged_under_it(compiled):
    top = "{name: sparse_top_k_categorical_accuracy, k: 2}"
    metrics = f"[acc, {top}, sparse_categorical_accuracy, SparseCategoricalCrossentropy]"
    names = {"loss", "acc", "sparse_top_k_categorical_accuracy", "sparse_categorical_accuracy"}
    assert logged(compiled(f"train.metrics={metrics}")) == {*names, "SparseCategoricalCrossentropy"}


def test_a_class_is_found_however_its_name_is_cut_into_words(compiled):
    assert "mean_io_u" in logged(compiled("train.metrics=[{name: mean_iou, num_classes: 3, sparse_y_pred: false}]"))


@pytest.mark.parametrize(
    ("where", "name", "nearest"),
    [
        ("loss", "sparse_categorical_crossentropi", "`sparse_categorical_crossentropy`"),
        ("loss", "accuracy", ""),
        ("loss", "Loss", ""),
        ("loss", "get", ""),
        ("metrics", "acuracy", "`accuracy`"),
        ("metrics", "{name: acuracy, k: 3}", "`accuracy`"),
        ("metrics", "metric", ""),
        ("metrics", "deserialize", ""),
    ],
)
def test_a_name_that_keras_does_not_know_is_told_with_its_place_and_the_nearest(compiled, where, name, nearest):
    with pytest.raises(RecipeError) as error:
        compiled(f"train.{where}={name}")
    message = str(error.value)
    assert message.startswith(f"--set train.{where}: `train.{where}: ")
    assert "is no name that Keras knows." in message
    assert f"Did you mean {nearest}" in message if nearest else "get" not in message.partition("knows.")[2]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("{name: auc, num_tresholds: 3}", "unexpected keyword argument 'num_tresholds'"),
        ("{name: auc, num_thresholds: -3}", "`num_thresholds` must be an integer > 1"),
        ("iou", "missing 2 required positional arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_told_with_what_keras_says(compiled, metric, said):
    with pytest.raises(RecipeError) as error:
        compiled(f"train.metrics=[{metric}]")
    message = str(error.value)
    assert message.startswith("--set train.metrics: `train.metrics: ")
    assert said in message


# -- Precision --------------------------------------------------------------------------------------------------------

BUILT = "model={builder: finetune.examples.digits:small_cnn}"


def policy_inside(recipe, mixed):
    wanted = load_recipe(recipe, overrides=[BUILT, f"train.mixed_precision={mixed}"])
    with build.precision(wanted):
        return keras.config.dtype_policy().name


@pytest.mark.parametrize(
    ("mixed", "policy"), [("false", "float32"), ("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16")]
)
def test_the_precision_of_the_recipe_holds_inside_and_the_former_one_is_put_back(recipe, mixed, policy):
    keras.config.set_dtype_policy("float64")
    try:
        assert policy_inside(recipe, mixed) == policy
        assert keras.config.dtype_policy().name == "float64"
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_former_precision_is_put_back_after_an_error_too(recipe):
    wanted = load_recipe(recipe, overrides=[BUILT, "train.mixed_precision=bfloat16"])

    def fail():
        with build.precision(wanted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert keras.config.dtype_policy().name == "float32"


def test_a_model_from_a_file_keeps_its_precision(recipe):
    assert problem(recipe, "train.mixed_precision=float16").startswith(
        "--set train.mixed_precision: a model from a file keeps the precision it was saved with."
    )


def test_float16_gets_a_loss_scale_around_all_groups(recipe):
    wanted = load_recipe(
        recipe, overrides=[BUILT, "train.mixed_precision=float16", "groups.stem.prefixes=[conv1, bn1]"]
    )
    with build.precision(wanted):
        model = network.build_model(wanted)
        tree = layer_tree(model)
        plans = build.plan_groups(
            load_recipe(recipe, overrides=["groups=[{name: a, rest: true, optimizer: sgd, learning_rate: 0.1}]"]), tree
        )
        groups = build.build_groups(wanted, plans, tree)
        settings = build.build_settings(plans, LENGTH)
        build.compile_model(wanted, model, build.build_optimizer(wanted, plans, groups, settings))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


# -- How long a run is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [7, 32, 33, 100])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_the_steps_are_those_that_keras_takes(recipe, rows, fraction, batch_size):
    wanted = load_recipe(recipe, overrides=[f"train.validation_fraction={fraction}", f"train.batch_size={batch_size}"])
    x, y = np.zeros((rows, 6), "float32"), np.zeros(rows)
    examples = Examples(x, y, x, y)
    kept = int(np.floor(rows * (1.0 - fraction)))  # as in keras' `train_validation_split`
    if kept == 0:
        with pytest.raises(RecipeError, match=f"leaves 0 of {rows} rows to train on"):
            build.run_length(wanted, examples)
    else:
        assert build.run_length(wanted, examples).steps_per_epoch == ceil(kept / batch_size)


@pytest.mark.parametrize(("rows", "fraction", "batch_size"), [(33, 0.3, 5), (100, 0.1, 32), (10, 0.95, 4), (7, 0.0, 3)])
def test_the_steps_are_those_of_a_real_fit(recipe, rows, fraction, batch_size):
    wanted = load_recipe(recipe, overrides=[f"train.validation_fraction={fraction}", f"train.batch_size={batch_size}"])
    x, y = np.zeros((rows, 6), "float32"), np.zeros(rows)
    try:
        expected = build.run_length(wanted, Examples(x, y, x, y)).steps_per_epoch
    except RecipeError:
        expected = None
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse", run_eagerly=True)
    fit = {"batch_size": batch_size, "validation_split": fraction, "verbose": 0}
    if expected is None:
        with pytest.raises(ValueError, match="not sufficient to split"):
            model.fit(x, y, **fit)
    else:
        model.fit(x, y, **fit)
        assert int(model.optimizer.iterations) == expected


def test_a_fraction_too_small_for_a_row_is_refused_as_keras_would(recipe):
    assert problem(recipe, "train.validation_fraction=1e-18") == (
        "--set train.validation_fraction: `train.validation_fraction: 1e-18` leaves 60 of 60 rows to train on. Both "
        "parts need a row: choose another fraction."
    )


def test_validation_rows_come_from_one_place(recipe):
    x, y = np.zeros((10, 6), "float32"), np.zeros(10)
    wanted = load_recipe(recipe, overrides=["train.validation_fraction=0.2"])
    with pytest.raises(RecipeError, match="but the data have validation rows of their own"):
        build.run_length(wanted, Examples(x, y, x, y, x, y))
    own = build.run_length(load_recipe(recipe), Examples(x, y, x, y, x, y))
    assert own == RunLength(epochs=2, steps_per_epoch=1)


# -- Models from files ------------------------------------------------------------------------------------------------


def test_a_file_saved_with_frozen_layers_gives_a_model_that_a_recipe_can_train(recipe, tiny, tmp_path):
    model = tiny()
    model.get_layer("head").trainable = False
    model.save(tmp_path / "frozen.keras")
    built_model, settings = prepared(recipe, f"model.keras_file={tmp_path / 'frozen.keras'}")
    assert list(settings) == ["body", "head"]
    assert [leaf.name for leaf in layer_tree(built_model).trainable][-1] == "head/bias"


def test_a_file_that_is_not_there_is_an_error_of_ours(recipe):
    with pytest.raises(FinetuneError, match="does not exist"):
        network.build_model(load_recipe(recipe, overrides=["model.keras_file=nowhere.keras"]))
