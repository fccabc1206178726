"""A recipe is laid out once: what is expensive or decides something is called once in a run."""

import inspect
import re
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune.build.data import precision
from finetune.build.layout import advice_on_fresh, build_layout, with_peaks
from finetune.errors import FinetuneError
from finetune.groups.layer_tree import layer_tree
from finetune.recipe.loader import load_recipe
from finetune.recipe.train import Train
from finetune.training.checkpoints.slot_names import weight_names
from finetune.training.run_fit import FitOptions

DIGITS = Path(__file__).resolve().parents[2] / "recipes" / "digits.yaml"
WINE = DIGITS.with_name("wine.yaml")
ONCE = {  # the functions that are counted, by module and name
    ("finetune.groups.selectors", "resolve_groups"),
    ("finetune.build.groups", "group_specs"),
    ("finetune.build.optimizer", "build_settings"),
    ("finetune.build.optimizer", "make_optimizer"),
    ("finetune.build.phases", "build_phases"),
    ("finetune.build.layout", "_lay_out"),
    ("finetune.pretrained.restore", "restore"),
}


def trees_of_the_model(run):
    """Returns how often `layer_tree` was called for the model of a run, but for the names in its checkpoints."""
    models = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code is layer_tree.__code__ and frame.f_back.f_code is not weight_names.__code__:
            models.append(frame.f_locals["model"])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = run()
    finally:
        sys.setprofile(before)
    return sum(model is result.model for model in models)


def calls_in(function, *arguments, **more):
    """Calls a function; returns how often each function of `ONCE` was called meanwhile."""
    counts = Counter()

    def count(frame, event, argument):
        if event == "call":
            key = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if key in ONCE:
                counts[key[1]] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function(*arguments, **more)
    finally:
        sys.setprofile(before)
    return dict(counts)


EXPECTED = {
    "resolve_groups": 1,
    "group_specs": 1,
    "build_settings": 1,
    "make_optimizer": 2,  # once for each group that is trained
    "build_phases": 1,
    "_lay_out": 1,
}


def test_in_a_run_of_the_digits_with_phases_everything_is_worked_out_once(tmp_path):
    phases = "phases=[{train: head, epochs: 1}, {train: all, epochs: 1}, {train: body, epochs: 1}]"
    calls = calls_in(finetune.run, DIGITS, tmp_path / "out", overrides=["train.epochs=", phases])
    assert calls == {**EXPECTED, "restore": 1}


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param([], marks=pytest.mark.grid),
        ["train.epochs=", "phases=[{train: head, epochs: 1}, {train: all, epochs: 1}]"],
    ],
)
def test_the_layer_tree_of_the_model_is_made_once_in_a_run(recipe, phases):
    assert trees_of_the_model(lambda: finetune.run(recipe, "out", overrides=phases)) == 1


# -- The derived layout -----------------------------------------------------------------------------------------------


def test_other_peaks_give_a_new_layout_around_the_same_model_and_data(recipe):
    loaded = load_recipe(recipe, overrides=["train.learning_rate=auto"])
    with precision(loaded):
        old = build_layout(loaded)
        layouts = []
        calls = calls_in(lambda: layouts.append(with_peaks(old, {"body": 1e-3, "head": 4e-2})))
    [new] = layouts
    assert old.rates_to_measure
    assert not new.rates_to_measure
    assert new.peaks == pytest.approx({"body": 1e-3, "head": 4e-2})
    for name in ("model", "examples", "tree", "restored"):
        assert getattr(new, name) is getattr(old, name)
    assert (calls["_lay_out"], calls["make_optimizer"]) == (1, 2)
    assert new.model.optimizer.group_optimizers["body"] is new.settings["body"].optimizer
    body = next(row for row in new.plan.weights if row.name == "body/kernel")
    assert body.learning_rate == pytest.approx((1e-3, 1e-3, 5e-4))  # the schedule keeps its shape


def test_factors_turn_the_peaks_into_those_asked_for(recipe, lay_out):
    layout = lay_out(recipe)
    assert layout.factors({"head": 1e-2}) == {"head": 0.5}
    assert layout.factors(layout.peaks) == {"body": 1.0, "head": 1.0}


# -- What a layout holds ----------------------------------------------------------------------------------------------


def test_a_recipe_without_phases_has_one_phase_of_all_groups_that_is_shown_nowhere(recipe, lay_out):
    layout = lay_out(recipe)
    [phase] = layout.phases
    assert (phase.train, phase.epochs, phase.rates) == ("all", 2, {})
    assert not layout.shows_phases
    assert layout.plan.phases == ()
    assert layout.phases_block is None
    assert (layout.length.epochs, layout.length.steps) == (2, 8)


@pytest.mark.parametrize(
    "override", ["phases=[{train: all, epochs: 2}]", "groups.body.batch_norm=train", "train.always_train=normalization"]
)
def test_phases_are_shown_where_the_recipe_or_a_group_asks_for_them(recipe, lay_out, override):
    layout = lay_out(recipe, override)
    assert layout.shows_phases
    assert len(layout.plan.phases) == 1


@pytest.mark.parametrize(
    "override",
    [
        "groups.body.prefixes=[bdy]",
        "groups.body.optimizer={name: sgd, momentun: 0.9}",
        "groups.head.learning_rate={schedule: piecewise_constant_decay, values: [1, 2, 3], boundaries_fraction: [0.01, 0.02]}",
        "phases=[{train: all, epochs: 2, until: {patience: 1}}]",
    ],
)
def test_a_fault_is_reported_before_weights_are_read(recipe, problem, override):
    message = problem(recipe, "restore={from: nowhere.weights.h5}", override, kind=FinetuneError)
    assert "nowhere" not in message
    assert "nowhere" in problem(recipe, "restore={from: nowhere.weights.h5}", kind=FinetuneError)


def test_examples_that_do_not_fit_are_reported_before_training(recipe, problem):
    np.savez("wide.npz", x_train=np.ones((8, 7)), y_train=np.zeros(8), x_test=np.ones((2, 7)), y_test=np.zeros(2))
    assert "takes `6` values per row" in problem(recipe, "data.npz=wide.npz", kind=FinetuneError)


def test_steps_in_a_call_divide_the_epoch_where_keras_makes_the_calls(recipe, lay_out):
    layout = lay_out(recipe, "train.steps_per_execution=3", "train.jit_compile=true")  # XLA needs Keras' own loop
    assert layout.model.steps_per_execution == 1  # of an epoch of 4 steps


@pytest.mark.parametrize("steps", [6, 2**31, 10**12])
def test_a_call_has_at_most_the_steps_of_an_epoch(recipe, lay_out, steps):
    assert lay_out(recipe, f"train.steps_per_execution={steps}").model.steps_per_execution == 4


def test_no_key_of_train_is_ignored():
    """A key is an argument of the optimizer or of `fit`, which take theirs by name, or is read somewhere."""
    by_name = {*inspect.signature(finetune.GroupedOptimizer).parameters} | {field.name for field in fields(FitOptions)}
    package = Path(finetune.__file__).parent
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path.parent.name != "recipe")
    read = {*re.findall(r"\b(?:train|settings)\.(\w+)", sources)} | {*re.findall(r'"train", "(\w+)"', sources)}
    assert {*Train.model_fields} - by_name - read == set()


@keras.saving.register_keras_serializable("finetune-layout-tests")
class Factor(keras.layers.Layer):
    """Multiplies by a variable that Keras does not see."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.factor = tf.Variable(1.0)

    def call(self, inputs):
        return inputs * self.factor


def test_the_plan_says_which_variables_keras_does_not_see(tmp_path, lay_out):
    parts = [Factor(name="factor"), keras.layers.Dense(2, name="head")]
    keras.Sequential([keras.Input((4,)), *parts]).save(tmp_path / "m.keras")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "r.yaml").write_text(
        "model: {keras_file: m.keras}\ndata: {npz: d.npz}\n"
        "groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 0.1}]\ntrain: {loss: mse, epochs: 1}\n"
    )
    assert any(
        sentence.startswith("Keras does not see the trainable variables in `factor.factor`")
        for sentence in lay_out(tmp_path / "r.yaml").plan.advice
    )


# -- Numbers that are none, and settings that train nothing -----------------------------------------------------------


@pytest.mark.parametrize("batches", [9, 1000])
def test_accumulation_over_more_batches_than_the_run_has_is_refused(recipe, problem, batches):
    assert problem(recipe, f"train.gradient_accumulation_steps={batches}") == (
        "--set train.gradient_accumulation_steps: `train.gradient_accumulation_steps` makes an update of the weights "
        f"after every {batches:,} batches, and the run has 8 in all: it would train nothing. Accumulate fewer batches, "
        "or train for longer."
    )


def test_accumulation_is_checked_for_each_phase(recipe, problem, lay_out):
    phases = "phases=[{train: [head], steps: 4}, {train: [body, head], steps: 3}]"
    assert "and phase 2 has 3 in all" in problem(recipe, "train.epochs=", phases, "train.gradient_accumulation_steps=4")
    lay_out(recipe, "train.epochs=", phases, "train.gradient_accumulation_steps=3")


def test_a_network_with_a_weight_that_is_no_number_is_refused(recipe, problem, tmp_path, tiny_files):
    model = keras.models.load_model(tiny_files / "tiny.keras", compile=False)
    model.get_layer("bn").moving_variance.assign([-1.0, *[1.0] * (model.get_layer("bn").moving_variance.shape[0] - 1)])
    model.save(tmp_path / "bad.keras")
    message = problem(recipe, f"model.keras_file={tmp_path / 'bad.keras'}")
    assert message.startswith("tiny.yaml:2:8: `model`: weights and statistics of a network must be finite numbers")
    assert "`bn/moving_variance`: 1 of " in message
    assert "values of a variance are negative, the first at [0]: -1.0" in message


def test_the_plan_says_which_moving_statistics_the_run_is_too_short_for(tmp_path, lay_out):
    x, y = np.ones((8, 28, 28, 1), "float32"), np.arange(8) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "r.yaml").write_text(
        "model: {builder: finetune.examples.digits:small_cnn}\ndata: {npz: d.npz}\n"
        "groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 0.1}]\ntrain: {epochs: 1, batch_size: 4}\n"
    )

    def told(*overrides):
        return [line for line in lay_out(tmp_path / "r.yaml", *overrides).plan.advice if "moving statistics" in line]

    assert ["the 2 steps of the run" in line and "`bn1`, `bn2`, `bn3`" in line for line in told()] == [True]
    assert told("train.epochs=200") == []


def test_images_that_would_be_scaled_twice_are_advice(tmp_path):
    network = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Rescaling(1 / 255, name="scaling"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    network.save(tmp_path / "network.keras")
    x, y = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype("float32"), np.arange(8) % 2
    np.savez(tmp_path / "rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "recipe.yaml").write_text(
        "model: {keras_file: network.keras}\ndata: {npz: rows.npz}\n"
        "groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1.0e-3}]\ntrain: {epochs: 1, batch_size: 8}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with precision(recipe):
        advice = build_layout(recipe).plan.advice
    assert any("takes pixels from 0 to 255, since `scaling` scales them. The inputs are" in each for each in advice)


def test_phases_that_freeze_a_network_without_pretrained_weights_are_advised_against(tmp_path):
    text = WINE.read_text().replace("tables/", f"{WINE.parent}/tables/")
    groups = "[{name: body, rest: true, optimizer: adam, learning_rate: 1e-3}, {name: head, prefixes: [head], optimizer: adam, learning_rate: 1e-2}]"
    (tmp_path / "a.yaml").write_text(
        f"extends: base.yaml\ngroups: {groups}\nphases: [{{train: head, epochs: 1}}, {{train: all, epochs: 1}}]\ntrain: {{epochs: null}}\n"
    )
    (tmp_path / "base.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "a.yaml")
    said = [line for line in build_layout(recipe).plan.advice if line.startswith("Nothing is pretrained")]
    assert said == [
        "Nothing is pretrained, and phase 1 trains `head` alone: what is frozen meanwhile is random, and training on top "
        "of it teaches little. Unless the builder loaded weights, remove `phases`, or add pretrained weights: `restore`, "
        "or `weights` of an application."
    ]
    assert list(advice_on_fresh(recipe, recipe.phases, {"hidden_0/kernel": "file.h5"})) == []
    for rates, is_told in (
        ("peak: 1e-2, decay: 2.6", True),
        ("peak: 1e-2, layer_decay: 0.9", True),
        ("spread: [1e-4, 1e-2]", True),
        ("peak: 1e-2, decay: 1", False),
    ):
        (tmp_path / "b.yaml").write_text(f"extends: base.yaml\ngroups: {{by: layer, {rates}, optimizer: adam}}\n")
        fresh = list(advice_on_fresh(load_recipe(tmp_path / "b.yaml"), [], {"hidden_0/kernel": None}))
        assert bool(fresh) is is_told
        assert not fresh or fresh[0].startswith(
            "Nothing is pretrained, and the groups near the input have lower rates: "
        )
    assert list(advice_on_fresh(recipe, recipe.phases[1:], {})) == []
