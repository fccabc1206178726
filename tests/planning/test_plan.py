import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.schedules import exponential_decay, one_cycle
from finetune.planning.plan import GroupSettings, advice_on_statistics, make_plan
from finetune.results.tables import as_text, weight_table
from finetune.training.phases.preview import PlannedPhase


def trained_with(optimizer, rate, *, peak=None, **more):
    """Settings of a group with an optimizer of Keras by its name."""
    child = keras.optimizers.get({"class_name": optimizer, "config": {**more.pop("config", {})}})
    return GroupSettings(child, optimizer, rate, peak or (1e-9 if callable(rate) else rate), **more)


def plan_of(model, selectors, settings, steps=100, **more):
    tree = layer_tree(model)
    return make_plan(tree, resolve_groups(tree, selectors), settings, steps=steps, **more)


def two_groups(model, body, head, **more):
    selectors = [Selector("body", prefixes=("stem", "bn", "body")), Selector("head", rest=True)]
    return plan_of(model, selectors, {"body": trained_with("sgd", body), "head": trained_with("adamw", head)}, **more)


def deep(depth):
    parts = [layers.Dense(2, name=f"dense{n}") for n in range(depth)]
    return keras.Sequential([keras.Input((2,)), *parts])


def row_of(plan, name):
    return next(row for row in plan.weights if row.name == name)


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 151])
@pytest.mark.parametrize("staircase", [True, False])
def test_rates_are_those_of_the_first_the_middle_and_the_last_step(tiny, steps, staircase):
    rate = exponential_decay(1e-2, decay_steps=10, decay_rate=0.5, staircase=staircase)
    plan = two_groups(tiny(), rate, 1e-3, steps=steps)
    at = np.array([0, (steps - 1) // 2, steps - 1])
    exponents = at // 10 if staircase else at / 10
    np.testing.assert_allclose(row_of(plan, "body/kernel").learning_rate, 1e-2 * 0.5**exponents, rtol=1e-6)
    assert row_of(plan, "head/bias").learning_rate == (1e-3, 1e-3, 1e-3)


def test_a_plan_says_which_prefix_adds_nothing_to_its_group(tiny):
    selectors = [Selector("a", prefixes=("body",)), Selector("b", prefixes=("stem", "body")), Selector("c", rest=True)]
    plan = plan_of(tiny(), selectors, {name: trained_with("sgd", 1e-3) for name in "abc"})
    assert "Group `b`: `prefixes: [body]` adds nothing to it, since `a` takes all that matches" in " ".join(plan.advice)


def test_every_weight_has_a_row_in_model_order_with_its_group_shape_and_size(tiny):
    plan = two_groups(tiny(), 1e-3, 1e-2)
    assert [row.name for row in plan.weights] == [leaf.name for leaf in layer_tree(tiny()).leaves]
    assert plan.groups == ("body", "head")
    kernel = row_of(plan, "head/kernel")
    assert (kernel.group, kernel.shape, kernel.parameters, kernel.optimizer) == ("head", (8, 3), 24, "adamw")
    assert sum(row.parameters for row in plan.weights) == tiny().count_params()


def test_a_frozen_weight_and_a_moving_statistic_have_neither_optimizer_nor_rate(tiny):
    selectors = [Selector("stem", prefixes=("stem",), frozen=True), Selector("rest", rest=True)]
    plan = plan_of(tiny(), selectors, {"rest": trained_with("sgd", 1e-3)})
    frozen, moving = row_of(plan, "stem/kernel"), row_of(plan, "bn/moving_mean")
    assert frozen.frozen
    assert not moving.frozen
    assert [(row.optimizer, row.learning_rate, row.weight_decay) for row in (frozen, moving)] == [
        (None, None, None)
    ] * 2


def test_weight_decay_skips_biases_and_normalization_unless_set_otherwise(tiny):
    for everywhere in (False, True):
        settings = {"all": trained_with("adamw", 1e-3, config={"weight_decay": 0.01}, decay_bias_and_norm=everywhere)}
        plan = plan_of(tiny(), [Selector("all", rest=True)], settings)
        decayed = {row.name for row in plan.weights if row.weight_decay}
        trained = {row.name for row in plan.weights if row.learning_rate}
        kernels = {"stem/kernel", "body/kernel", "head/kernel"}
        assert decayed == (trained if everywhere else kernels)


@pytest.mark.parametrize(
    ("frozen", "mode"), [(True, "inference, statistics fixed"), (False, "training, statistics updated")]
)
def test_batch_normalization_tells_its_mode(tiny, frozen, mode):
    selectors = [Selector("stem", prefixes=("stem", "bn"), frozen=frozen), Selector("rest", rest=True)]
    plan = plan_of(tiny(), selectors, {"stem": trained_with("sgd", 1e-3), "rest": trained_with("sgd", 1e-3)})
    modes = {row.batch_normalization for row in plan.weights if row.name.startswith("bn/")}
    assert modes == {mode}
    assert row_of(plan, "stem/kernel").batch_normalization is None


def test_where_a_weight_was_restored_from_is_in_its_row(tiny):
    plan = two_groups(tiny(), 1e-3, 1e-2, restored_from={"stem/kernel": "layer0/w"})
    assert row_of(plan, "stem/kernel").restored_from == "layer0/w"
    assert row_of(plan, "stem/bias").restored_from is None


def test_a_plan_is_plain_data_that_json_can_hold(tiny):
    plan = two_groups(tiny(), exponential_decay(1e-3, 10, 0.5), 1e-2)
    again = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert again["groups"] == ["body", "head"]
    assert again["steps"] == 100
    assert again["weights"][0]["shape"] == [6, 8]


# -- Advice -----------------------------------------------------------------------------------------------------------


def advice_for(model, selectors, rates, **more):
    names = {leaf.name: "file" for leaf in layer_tree(model).leaves}
    settings = {name: trained_with("sgd", rate) for name, rate in rates.items()}
    return plan_of(model, selectors, settings, restored_from=names, **more).advice


ALL = [Selector("all", rest=True)]


@pytest.mark.parametrize(("depth", "rate", "warned"), [(8, 0.11, True), (8, 0.1, False), (7, 5.0, False)])
def test_a_rate_above_a_tenth_is_warned_of_in_a_network_deeper_than_seven_layers(depth, rate, warned):
    advice = advice_for(deep(depth), ALL, {"all": rate})
    assert len(advice) == warned
    if warned:
        assert advice[0] == (
            "Group `all` has a learning rate of 0.11. In a network of 8 layers with weights, more than 0.1 rarely "
            "trains: try 0.011."
        )


def test_the_peak_of_a_schedule_counts_though_it_lies_between_first_middle_and_last():
    settings = {"all": trained_with("sgd", one_cycle(0.4, 1000), peak=0.4)}
    assert "learning rate of 0.4" in plan_of(deep(8), ALL, settings, steps=1000).advice[0]


BODY, HEAD = Selector("body", prefixes=("stem", "bn", "body")), Selector("head", prefixes=("head",))


@pytest.mark.parametrize("selectors", [[BODY, HEAD], [HEAD, BODY]])
def test_an_earlier_group_with_a_higher_rate_is_reported_whatever_the_order_of_the_list(tiny, selectors):
    assert advice_for(tiny(), selectors, {"body": 1e-2, "head": 1e-3}) == (
        "Group `body` has a higher learning rate (0.01) than `head` (0.001), which is nearer the output. Earlier layers "
        "are more general and usually take the smaller rate.",
    )
    assert advice_for(tiny(), selectors, {"body": 1e-3, "head": 1e-3}) == ()


def test_groups_that_lie_side_by_side_are_not_compared(tiny):
    selectors = [Selector("kernels", regex=(".*/kernel",)), Selector("others", rest=True)]
    assert advice_for(tiny(), selectors, {"kernels": 1e-2, "others": 1e-3}) == ()


def test_a_frozen_group_of_fresh_weights_is_reported(tiny):
    selectors = [Selector("stem", prefixes=("stem",), frozen=True), Selector("rest", rest=True)]
    plan = plan_of(tiny(), selectors, {"rest": trained_with("sgd", 1e-3)}, restored_from={"stem/kernel": "a"})
    assert plan.advice == (
        "Group `stem` is frozen, and 1 of its weights is not restored: `stem/bias`. Unless the builder loaded them, "
        "they stay random: restore or train them.",
    )


def test_moving_statistics_that_a_run_is_too_short_to_fill_are_told(tiny):
    model, of_all, rate = tiny(), [Selector("all", rest=True)], {"all": trained_with("sgd", 1e-3)}

    def advice(**more):
        return tuple(advice_on_statistics(plan_of(model, of_all, rate, **more), layer_tree(model)))

    told = (
        "Evaluation and prediction use the moving statistics of BatchNormalization, which at the end of the 100 steps "
        "of the run will still be to 37% what they begin with, in 1 layer: `bn`. Lower their `momentum`, such as to "
        "0.9, train for longer, or estimate them again after training, with `finetune run --recalibrate`.",
    )
    assert advice(steps=100) == told  # 0.99 ** 100 = 0.366
    plan = plan_of(model, of_all, rate, steps=400)
    for modes, share in {("freeze", "train"): 37, ("statistics", "train"): 2, ("freeze", "affine"): 0}.items():
        # 300 steps and 100: those alone count that update them
        phases = tuple(
            PlannedPhase(("all",), 1, steps, 1, {}, {}, {"all": mode}, (), ())
            for mode, steps in zip(modes, (300, 100), strict=True)
        )
        said = tuple(advice_on_statistics(replace(plan, phases=phases), layer_tree(model)))
        assert said == tuple(each.replace("100 steps", "400 steps") for each in told if share > 5), modes
    assert advice(steps=300) == ()
    assert advice(steps=100, restored_from={"bn/moving_mean": "a"}) == ()
    model.get_layer("bn").moving_mean.assign([0.5] * model.get_layer("bn").moving_mean.shape[0])  # as a builder does
    assert advice(steps=100) == ()


def test_what_other_code_froze_is_shown_as_such_and_said_how_to_train_it(tiny):
    model = tiny()
    model.get_layer("body").enable_lora(2)
    model.get_layer("bn").trainable = False
    selectors = [Selector("body", prefixes=("stem", "bn", "body")), Selector("head", rest=True)]
    plan = plan_of(model, selectors, {"body": trained_with("sgd", 1e-3), "head": trained_with("adamw", 1e-3)})
    kernel, bias = row_of(plan, "body/kernel"), row_of(plan, "body/bias")
    assert (kernel.frozen, kernel.frozen_by, kernel.optimizer) == (True, "frozen by LoRA", None)
    assert (bias.frozen, bias.frozen_by, bias.optimizer) == (False, None, "sgd")
    assert row_of(plan, "bn/moving_mean").batch_normalization == "inference, statistics fixed"
    assert plan.advice == (
        "Weights of group `body` that do not train: 4 not trainable when resolved (`bn/gamma`, `bn/beta`, "
        "`bn/moving_mean` and 1 more), 1 frozen by LoRA (`body/kernel`). `frozen: false` in the group trains them.",
    )
    [line] = [line for line in as_text(weight_table(plan.to_json())).splitlines() if " body/kernel " in f" {line}"]
    assert line.endswith(" frozen by LoRA")


def test_the_plan_of_quantized_weights_does_not_offer_to_train_them(tiny):
    model = tiny()
    model.get_layer("body").quantize("int8")
    selectors = [Selector("body", prefixes=("stem", "bn", "body")), Selector("head", rest=True)]
    plan = plan_of(model, selectors, {"body": trained_with("sgd", 1e-3), "head": trained_with("adamw", 1e-3)})
    assert plan.advice == (
        "Weights of group `body` that do not train: 2 quantized (`body/kernel`, `body/kernel_scale`).",
    )


def test_the_plan_says_in_which_order_variables_were_counted_where_the_orders_differ():
    layers = {name: keras.layers.Dense(3, name=name) for name in ("a", "b")}
    for name in ("b", "a"):
        layers[name].build((None, 3))
    model = keras.Sequential([keras.Input((3,)), layers["a"], layers["b"]])
    for order in ("graph", "creation"):
        selectors = [Selector("first", variables=("0:2",), order=order), Selector("head", rest=True)]
        advice = advice_for(model, selectors, {"first": 1e-3, "head": 1e-3})
        assert f"(`order: {order}`). In the order" in advice[0]


def test_rates_far_below_the_highest_are_told_with_what_to_do(tiny):
    selectors = (Selector("body", prefixes=("body",)), Selector("head", rest=True))
    assert advice_for(tiny(), selectors, {"body": 0.9e-6, "head": 1e-3}) == (
        "1 of 2 groups have less than 0.001 of the highest learning rate (0.001), down to 9.0e-07, and hardly move: "
        "`body`. They cost as much as the others: freeze them, or bring the rates nearer together, with `by: block` or "
        "`layer_decay: 0.9`.",
    )
    assert advice_for(tiny(), selectors, {"body": 1e-6, "head": 1e-3}) == ()
