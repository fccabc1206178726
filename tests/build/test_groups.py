from dataclasses import fields

import keras
import numpy as np
import pytest

from finetune.build.groups import NORMALIZATION, build_groups, group_specs, place_of_group, with_normalization
from finetune.errors import GroupError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.rate_spacing import discriminative_rates, spread_rates
from finetune.groups.selectors import Selector
from finetune.optimizers.tf1_momentum import Momentum
from finetune.recipe.groups import GroupSpec, Strategy
from finetune.recipe.loader import load_recipe

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_a_group_list_keeps_its_order_and_its_names(recipe, lay_out):
    layout = lay_out(recipe)
    assert [group.name for group in layout.groups] == ["stem", "body", "head"]
    assert list(layout.model.optimizer.group_optimizers) == ["body", "head"]
    names = {name: settings.optimizer_name for name, settings in layout.settings.items()}
    assert names == {"body": "momentum", "head": "adamw"}
    assert isinstance(layout.settings["body"].optimizer, Momentum)
    assert isinstance(layout.settings["head"].optimizer, keras.optimizers.AdamW)


def test_every_key_of_a_selector_is_taken_from_the_group_of_the_recipe(recipe, tiny):
    assert {field.name for field in fields(Selector)} < {*GroupSpec.model_fields}
    selectors = "prefixes: [stem], regex: ['bn/.*'], layers: '2', variables: '6:'"
    override = f"groups=[{{name: a, {selectors}, optimizer: sgd, learning_rate: 0.1}}]"
    loaded = load_recipe(recipe, overrides=[override])
    [group] = build_groups(loaded, loaded.groups, layer_tree(tiny()))
    assert [leaf.layer for leaf in group.trainable] == ["stem", "stem", "bn", "bn", "body", "body", "head", "head"]


def test_every_key_that_a_strategy_shares_with_a_group_is_passed_on(recipe, tiny):
    strategy = "by: layer, peak: 1e-2, decay: 2, optimizer: {name: adamw, beta_1: 0.5}, decay_bias_and_norm: true"
    loaded = load_recipe(recipe, overrides=[f"groups={{{strategy}}}"])
    shared = {*Strategy.model_fields} & {*GroupSpec.model_fields} - {"learning_rate"}
    assert shared >= {"optimizer", "decay_bias_and_norm"}
    for spec in group_specs(loaded, layer_tree(tiny())):
        assert all(getattr(spec, name) == getattr(loaded.groups, name) for name in shared)


@pytest.mark.parametrize("by", ["layer", "block"])
def test_a_strategy_with_peak_and_decay_gives_every_group_its_share_of_the_one_above(recipe, lay_out, by):
    settings = lay_out(recipe, f"groups={{by: {by}, peak: 1e-2, decay: 2.6, optimizer: sgd}}").settings
    rates = [group.rate_at(0) for group in settings.values()]
    assert rates == pytest.approx(discriminative_rates(1e-2, len(rates), decay=2.6))
    assert list(settings) == (["stem", "bn", "body", "head"] if by == "layer" else ["stem", "body", "head"])


def test_a_strategy_with_a_spread_is_geometric_between_its_ends(recipe, lay_out):
    settings = lay_out(recipe, "groups={by: layer, spread: [1e-5, 1e-2], optimizer: sgd}").settings
    rates = [group.rate_at(7) for group in settings.values()]
    assert rates == pytest.approx(spread_rates(1e-5, 1e-2, 4))
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize(
    ("shape", "peak_name"),
    [
        ("{schedule: cosine_decay, decay_fraction: 1.0}", "initial"),
        ("{schedule: one_cycle, warmup_fraction: 0.5}", "peak"),
    ],
)
def test_a_strategy_gives_its_schedule_to_every_group_at_the_groups_own_rate(recipe, lay_out, shape, peak_name):
    groups = f"groups={{by: layer, peak: 1e-2, decay: 2, optimizer: sgd, learning_rate: {shape}}}"
    settings = lay_out(recipe, groups).settings
    first, *_, last = settings.values()
    assert first.rate_at(3) == pytest.approx(last.rate_at(3) / 8)
    assert max(last.rate_at(step) for step in range(8)) == pytest.approx(1e-2)
    assert last.rate_at(7) < last.rate_at(4)


def test_rates_too_small_for_a_number_are_reported_with_their_place(recipe, problem):
    assert problem(recipe, "groups={by: layer, peak: 1e-30, decay: 1e300, optimizer: sgd}").startswith(
        "--set groups: `groups`: Every group needs a learning rate above 0."
    )


def test_a_selector_that_matches_nothing_is_reported_with_its_line_and_column_and_the_nearest_name(recipe, problem):
    text = recipe.read_text()
    recipe.write_text(text.replace("prefixes: [body]", "prefixes: [bdy]").replace("[stem, bn]", "[stm, bn]"))
    lines = problem(recipe, kind=GroupError).splitlines()
    assert lines == [
        "tiny.yaml:5:28: group `stem` matches nothing: `prefixes: [stm]`. The model's top layers are `stem`, `bn`, "
        "`body`, `head`. Did you mean `stem`?",
        "tiny.yaml:7:15: group `body` matches nothing: `prefixes: [bdy]`. The model's top layers are `stem`, `bn`, "
        "`body`, `head`. Did you mean `body`?",
    ]


def test_weights_in_no_group_are_reported_with_the_place_of_the_groups(recipe, problem):
    recipe.write_text(recipe.read_text().replace("rest: true", "prefixes: [head/bias]"))
    message = problem(recipe, kind=GroupError)
    assert message.startswith("tiny.yaml:5:3: Every trainable variable must be in a group, and 1 of 8 are in none")
    assert "`head/kernel`" in message


@pytest.mark.parametrize(
    ("selector", "value"), [("variables", '"0:40"'), ("layers", "9"), ("regex", '"head/.*/x"'), ("prefixes", "a")]
)
def test_every_kind_of_selector_is_placed(recipe, problem, selector, value):
    recipe.write_text(recipe.read_text().replace("prefixes: [body]", f"{selector}: {value}"))
    assert problem(recipe, kind=GroupError).startswith(f"tiny.yaml:7:{len(selector) + 7}: group `body`")


# -- Normalization that always trains ---------------------------------------------------------------------------------

ALWAYS = "train.always_train=normalization"


def extended(recipe, tiny, *overrides):
    loaded, tree = load_recipe(recipe, overrides=[ALWAYS, *overrides]), layer_tree(tiny())
    return {spec.name: spec for spec in with_normalization(loaded, group_specs(loaded, tree), tree)}


def test_normalization_of_a_frozen_group_is_trained_like_the_next_trained_group(recipe, tiny):
    specs = extended(recipe, tiny)
    assert list(specs) == ["stem-normalization", "stem", "body", "head"]
    assert (specs["stem-normalization"].regex, specs["stem-normalization"].prefixes) == (("bn/gamma", "bn/beta"), ())
    assert not specs["stem-normalization"].frozen
    assert specs["stem-normalization"].optimizer == specs["body"].optimizer
    assert specs["stem-normalization"].learning_rate == specs["body"].learning_rate


def test_behind_the_last_trained_group_normalization_is_trained_like_it(recipe, tiny):
    trained = "{name: first, prefixes: [stem], optimizer: sgd, learning_rate: 0.1}"
    specs = extended(recipe, tiny, f"groups=[{trained}, {{name: last, rest: true, frozen: true}}]")
    assert list(specs) == ["first", "last-normalization", "last"]
    assert specs["last-normalization"].learning_rate == 0.1


def test_a_frozen_group_of_nothing_but_normalization_is_replaced_as_a_whole(recipe, tiny):
    frozen, trained = (
        "{name: norm, prefixes: [bn], frozen: true}",
        "{name: a, rest: true, optimizer: sgd, learning_rate: 0.1}",
    )
    assert list(extended(recipe, tiny, f"groups=[{frozen}, {trained}]")) == ["norm-normalization", "a"]


def test_without_always_train_the_groups_stay_as_they_are(recipe, tiny):
    loaded = load_recipe(recipe)
    assert with_normalization(loaded, loaded.groups, layer_tree(tiny())) == loaded.groups


def test_a_message_about_a_group_begins_with_its_place(recipe):
    loaded = load_recipe(recipe)
    assert place_of_group(loaded, "body") == "tiny.yaml:6:5: group `body`"
    assert place_of_group(loaded, f"body{NORMALIZATION}") == "tiny.yaml:6:5: group `body`"
    assert place_of_group(loaded, "other") == "tiny.yaml:5:3: `groups`"


def test_strategies_of_groups_and_phases_leave_out_what_the_model_brings_frozen(tmp_path, lay_out):
    parts = [keras.layers.Dense(4, name=name) for name in ("stem", "body", "head")]
    model = keras.Sequential([keras.Input((4,)), *parts])
    model.get_layer("stem").trainable = False
    model.save(tmp_path / "m.keras")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 4), "float32")
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    groups = "groups: {by: layer, peak: 1e-2, decay: 2, optimizer: sgd}"
    (tmp_path / "r.yaml").write_text(
        f"model: {{keras_file: m.keras}}\ndata: {{npz: d.npz}}\n{groups}\nphases: gradual_unfreezing\n"
        "train: {loss: mse, epochs: 3}\n"
    )
    layout = lay_out(tmp_path / "r.yaml")
    assert {group.name: group.frozen for group in layout.groups} == {"stem": True, "body": False, "head": False}
    assert [phase.train for phase in layout.phases] == [("head",), ("body", "head")]
    [said] = [line for line in layout.plan.advice if "do not train" in line]
    assert said == (
        "Weights of group `stem` that do not train: 2 not trainable when resolved (`stem/kernel`, `stem/bias`). "
        "`frozen: false` in the group trains them."
    )
    opened = lay_out(tmp_path / "r.yaml", "groups.frozen=false")
    assert not any(group.frozen for group in opened.groups)
    assert not [line for line in opened.plan.advice if "do not train" in line]


def test_a_strategy_sets_modes_for_all_groups_or_by_name_and_its_rates_by_layer_decay(recipe, lay_out, problem):
    strategy = "groups={by: layer, peak: 1.0e-2, layer_decay: 0.5, optimizer: sgd, batch_norm: %s}"
    layout = lay_out(recipe, strategy % "affine")
    assert list(layout.peaks.values()) == [1.25e-3, 2.5e-3, 5e-3, 1e-2]
    assert dict(layout.phases[0].batch_norm) == dict.fromkeys(layout.peaks, "affine")
    assert layout.shows_phases
    assert dict(lay_out(recipe, strategy % "{bn: freeze}").phases[0].batch_norm) == {"bn": "freeze"}
    assert "`batch_norm` names groups that the strategy does not make: `bm`. It makes `stem`, `bn`, " in problem(
        recipe, strategy % "{bm: freeze}"
    )
