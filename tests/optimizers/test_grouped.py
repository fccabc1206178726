import doctest
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers import grouped
from finetune.optimizers.grouped import GroupedOptimizer

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
ONES = np.ones((1, 2), "f4")


def variable(name="kernel", shape=(2, 2), scope=None, value=1.0):
    with keras.name_scope(scope or "layer"):
        return keras.Variable(np.full(shape, value, "f4"), name=name)


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def step(model):
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(ONES) - 3.0) ** 2)
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def moved_by(optimizer, variables):
    """How far a gradient of ones moves each variable."""
    before = [np.array(v) for v in variables]
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    return [float((old - np.array(v)).max()) for old, v in zip(before, variables, strict=True)]


def test_the_docstring_tells_the_truth():
    assert doctest.testmod(grouped).failed == 0


# -- What a group may hold --------------------------------------------------------------------------------------------


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.ones((2, 2)), name="w")
        self.steps = tf.Variable(0.0, trainable=False)


class Block(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [keras.layers.Dense(2), keras.layers.Dropout(0.5), keras.layers.Dense(2)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def a_subclassed_model():
    block = Block()
    block(ONES)
    return block


def a_nested_model():
    return keras.Sequential([keras.Input((2,)), make_model("inner"), keras.layers.Dense(2)])


def a_layer_group():
    return resolve_groups(make_model("a", "b"), [Selector("all", rest=True)])[0]


def a_loaded_saved_model(path):
    tf.saved_model.save(Net(), str(path))
    return tf.saved_model.load(str(path))


def a_model_with_layers_without_weights():
    return [keras.layers.Dropout(0.5), keras.layers.InputLayer((2,)), *make_model("a").layers]


def a_frozen_layer():
    layer = make_model("a").layers[0]
    layer.trainable = False
    return layer


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: tf.Variable([1.0]), 1),
        (variable, 1),
        (lambda: [variable(), [variable(), (variable(),)]], 3),
        (lambda: make_model("a").layers[0], 2),
        (lambda: make_model("a", "b", "c").layers[1:], 4),
        (lambda: make_model("a", "b"), 4),
        (a_nested_model, 4),
        (a_subclassed_model, 4),
        (a_layer_group, 4),
        (Net, 1),
        (a_model_with_layers_without_weights, 2),
        (a_frozen_layer, 2),
        (lambda: [one := variable(), one], 1),
        (lambda: (v for v in [variable(), variable()]), 2),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("<>"),
)
def test_a_group_holds_variables_layers_models_and_sequences_of_them(make, count):
    optimizer = GroupedOptimizer({"all": (SGD(0.1), make())})
    optimizer.build([])
    assert len(optimizer._trainable_variables) == count


def test_a_group_holds_a_loaded_saved_model(tmp_path):
    loaded = a_loaded_saved_model(tmp_path)
    assert moved_by(GroupedOptimizer({"all": (SGD(0.5), loaded)}), [loaded.w]) == [0.5]


def test_each_group_moves_by_its_own_rate():
    body, head = make_model("body"), tf.Variable(tf.ones((2, 2)))
    optimizer = GroupedOptimizer([(SGD(0.25), body), (SGD(0.5), head)])
    assert moved_by(optimizer, [*body.trainable_variables, head]) == [0.25, 0.25, 0.5]
    assert optimizer.group_names == ("group_0", "group_1")
    assert [child.name for child in optimizer.optimizers] == ["group_0", "group_1"]


def test_apply_gradients_returns_the_step():
    v = tf.Variable([1.0])
    optimizer = GroupedOptimizer({"all": (SGD(0.1), v)})
    assert int(optimizer.apply_gradients([(tf.ones(1), v)])) == 1
    assert int(optimizer.apply_gradients(zip([tf.ones(1)], [v], strict=True))) == 2


def test_gradients_alone_go_to_the_variables_in_the_order_of_build():
    a, b = variable("a", value=1.0), variable("b", value=1.0)
    optimizer = GroupedOptimizer({"a": (SGD(1.0), a), "b": (SGD(1.0), b)})
    optimizer.build([b, a])
    optimizer.apply([tf.fill((2, 2), 10.0), tf.fill((2, 2), 20.0)])
    assert (float(b[0, 0]), float(a[0, 0])) == (-9, -19)


def test_layers_may_be_built_after_the_optimizer():
    body, head = keras.layers.Dense(3), keras.layers.Dense(2)
    model = keras.Sequential([body, keras.layers.Dropout(0.1), head])
    model.compile(GroupedOptimizer({"body": (SGD(0.1), model.layers[:2]), "head": (SGD(0.1), head)}), loss="mse")
    assert model.optimizer.learning_rates == pytest.approx({"body": 0.1, "head": 0.1})
    model(ONES)
    step(model)
    assert model.optimizer.optimizers[0].built
    assert int(model.optimizer.iterations) == 1


@pytest.mark.slow
def test_a_model_that_is_not_built_fits():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(GroupedOptimizer([(SGD(0.1), model.layers[0]), (Adam(0.1), model.layers[1])]), loss="mse")
    model.fit(ONES, ONES, verbose=0)
    assert int(model.optimizer.iterations) == 1


def test_the_first_step_may_be_traced():
    v = tf.Variable([1.0])
    optimizer = GroupedOptimizer({"all": (Adam(0.5), v)}, use_ema=True)
    train = tf.function(lambda: optimizer.apply([tf.ones(1)], [v]))
    train()
    train()
    assert int(optimizer.iterations) == 2
    assert float(v[0]) == pytest.approx(0.0, abs=1e-4)


def test_fit_traces_the_step_once():
    traced = []

    class Counting(keras.Model):
        def train_step(self, *arguments):
            traced.append(arguments)
            return super().train_step(*arguments)

    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(2)
    model = Counting(inputs, keras.layers.Dense(2)(hidden(inputs)))
    head = model.layers[-1]
    optimizer = GroupedOptimizer([(keras.optimizers.Adam(1e-3), hidden), (keras.optimizers.SGD(1e-2), head)])
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert len(traced) == 1
    assert int(optimizer.iterations) == 1


def test_a_compiled_step_has_as_many_operations_for_twenty_groups_as_for_one():
    def operations(num_groups):
        variables = [tf.Variable([1.0]) for _ in range(20)]
        parts = np.array_split(np.arange(20), num_groups)
        optimizer = GroupedOptimizer([(SGD(0.1), [variables[i] for i in part]) for part in parts], global_clipnorm=1.0)
        optimizer.build(variables)
        train = tf.function(lambda: optimizer.apply([tf.ones(1)] * 20, variables))
        return len(train.get_concrete_function().graph.get_operations())

    one, twenty = operations(1), operations(20)
    assert twenty - one <= 2 * 19 + 3  # one more rate is read, and they are put into a column


# -- Errors -----------------------------------------------------------------------------------------------------------


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize("groups", [{}, None, "body", 3])
def test_no_groups_are_an_error(groups):
    assert message(lambda: GroupedOptimizer(groups)) == (
        f"`groups` maps names to pairs of an optimizer and what it updates. Received `{groups!r}`. Write "
        "`{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}`."
    )


@pytest.mark.parametrize("name", ["a/b", "", "my group", 3, "körper"])
def test_a_name_that_no_variable_could_have_is_an_error(name):
    assert message(lambda: GroupedOptimizer({name: (SGD(0.1), variable())})) == (
        f"A group's name is made of letters, digits, `_`, `-` and `.`. Received: `{name}`. Give another name."
    )


@pytest.mark.parametrize("name", ["name", "variables", "0", "_x", "-1", "a.b"])
def test_any_other_name_is_fine(name):
    v = variable()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = GroupedOptimizer({name: (Adam(schedule), v)})
    tf.function(lambda: optimizer.apply([tf.ones((2, 2))], [v])).get_concrete_function()
    assert list(optimizer.learning_rates) == [name]


@pytest.mark.parametrize("pair", [3, (SGD(0.1),), ("sgd", [1]), (SGD(0.1), [1], 2)], ids=range(4))
def test_a_group_that_is_no_pair_is_an_error(pair):
    assert message(lambda: GroupedOptimizer({"body": pair})) == (
        f"A group is a pair of a Keras optimizer and what it updates. Group `body` received `{pair!r}`. Write "
        "`{'body': (keras.optimizers.SGD(1e-4), layers), 'head': (...)}`."
    )


def test_a_shared_optimizer_is_an_error():
    one = SGD(0.1)
    assert message(lambda: GroupedOptimizer({"a": (one, variable()), "b": (one, variable())})) == (
        "Every group has an optimizer of its own. Groups `a`, `b` share one. Make one for each."
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)),
        lambda: keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(SGD(0.1))),
        lambda: GroupedOptimizer({"inner": (SGD(0.1), variable())}),
    ],
)
def test_an_optimizer_of_optimizers_in_a_group_is_an_error(make):
    child = make()
    assert message(lambda: GroupedOptimizer({"body": (child, variable())})) == (
        f"A group's optimizer is a plain one. Group `body` received a `{type(child).__name__}`, which holds others. Give "
        "it a plain one; a `LossScaleOptimizer` goes around the whole."
    )


@pytest.mark.parametrize(
    "setting",
    [{"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2}, {"loss_scale_factor": 2.0}, {"use_ema": True}],
    ids=str,
)
def test_a_setting_over_all_groups_on_one_of_them_is_an_error(setting):
    (name,) = setting
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1, **setting), variable())})) == (
        f"`{name}` goes over all groups. Group `body` has it on its own optimizer. Give it to "
        f"`GroupedOptimizer({name}=...)` instead."
    )


def used_before():
    made = SGD(0.1)
    made.build([variable()])
    return made


def in_another():
    made = SGD(0.1)
    GroupedOptimizer({"other": (made, variable())})
    return made


@pytest.mark.parametrize("make", [used_before, in_another])
def test_an_optimizer_used_before_is_an_error(make):
    child = make()
    assert message(lambda: GroupedOptimizer({"body": (child, variable())})) == (
        "A group's optimizer is a fresh one. The `SGD` of group `body` already belongs to other variables or to another "
        "`GroupedOptimizer`. Make a new one."
    )


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_rate_that_is_none_is_an_error(rate):
    text = message(lambda: GroupedOptimizer({"body": (SGD(rate), variable())}))
    assert text.startswith("the learning rate of group `body` must be a finite number above 0.")


def test_a_group_that_fails_leaves_the_optimizers_of_the_others_unused():
    good = SGD(0.1)
    message(lambda: GroupedOptimizer({"good": (good, variable()), "bad": (SGD(0.0), variable())}))
    message(lambda: GroupedOptimizer({"good": (good, variable()), "bad": (SGD(0.1), [])}))
    GroupedOptimizer({"good": (good, variable())})


@pytest.mark.parametrize("members", [[], keras.layers.Dropout(0.1), [[], ()]], ids=range(3))
def test_a_group_without_variables_is_an_error(members):
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1), members)})) == (
        "A group updates at least one trainable variable. Group `body` has none. Give it layers with weights, or leave "
        "the group out."
    )


@pytest.mark.parametrize("member", ["dense", {"a": 1}, 3, b"x", SGD(0.1), tf.constant([1.0])], ids=range(6))
def test_a_member_without_variables_is_an_error(member):
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1), [member])})) == (
        "A group's members are layer groups, layers, variables or sequences of these. Group `body` received "
        f"`{member!r}`. To choose by name use `finetune.resolve_groups`."
    )


def test_a_layer_that_is_never_built_is_an_error_at_the_first_step():
    optimizer = GroupedOptimizer({"body": (SGD(0.1), keras.layers.Dense(2, name="late"))})
    v = variable()
    for use in (lambda: optimizer.apply([tf.ones((2, 2))], [v]), optimizer.get_config, lambda: optimizer.build([v])):
        assert message(use) == (
            "A group updates weights that exist. Group `body` holds the layer `late`, which has none yet. Build the model "
            "first: call it on a batch, or give it a `keras.Input`."
        )


def test_a_variable_in_two_groups_is_an_error_that_names_five():
    model = make_model(*"abcd")
    text = message(lambda: GroupedOptimizer({"all": (SGD(0.1), model), "again": (SGD(0.1), model.layers[:3])}))
    assert text == (
        "A variable belongs to exactly one group. Claimed twice: `a/kernel` (2, 2) (`all` and `again`), `a/bias` (2,) "
        "(`all` and `again`), `b/kernel` (2, 2) (`all` and `again`), `b/bias` (2,) (`all` and `again`), `c/kernel` (2, 2) "
        "(`all` and `again`) and 1 more. Take it out of one of them."
    ).replace("`a/", f"`{model.name}/a/").replace("`b/", f"`{model.name}/b/").replace("`c/", f"`{model.name}/c/")


def test_a_variable_and_a_keras_variable_around_it_are_the_same():
    native = tf.Variable(tf.ones(2))
    around = keras.Variable(native, name="around")
    assert "Claimed twice" in message(lambda: GroupedOptimizer([(SGD(0.1), native), (SGD(0.1), around.value)]))


def test_a_variable_of_no_group_is_an_error_that_names_it():
    model = make_model("a", "b")
    optimizer = GroupedOptimizer({"a": (SGD(0.1), model.layers[0])})
    expected = (
        "An optimizer updates the variables that it was made for. 2 variables belong to no group: "
        f"`{model.name}/b/kernel` (2, 2), `{model.name}/b/bias` (2,). All variables of the groups are there already. Make "
        "a new one whose groups cover them."
    )
    assert message(lambda: optimizer.build(model.trainable_variables)) == expected
    model.compile(optimizer, loss="mse")
    assert message(lambda: step(model)) == expected


@pytest.mark.parametrize("given", [True, False])
def test_gradients_and_variables_that_do_not_pair_up_are_an_error(given):
    variables = [variable("a"), variable("b")]
    optimizer = GroupedOptimizer({"a": (SGD(0.1), variables)})
    text = message(lambda: optimizer.apply([tf.ones((2, 2))], variables if given else None))
    rest = "" if given else " of the groups. Pass the variables, too"
    assert text == f"Gradients and variables come in pairs. Received 1 gradients for 2 variables{rest}."


def test_no_gradient_at_all_is_an_error_as_in_keras():
    v = variable()
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        GroupedOptimizer({"a": (SGD(0.1), v)}).apply([None], [v])


# -- Rates and Keras' callbacks ---------------------------------------------------------------------------------------


def test_tensorboard_records_the_rate_of_every_group(tmp_path):
    model = make_model("body", "head")
    optimizer = GroupedOptimizer({"body": (SGD(0.1), model.layers[0]), "head": (SGD(0.2), model.layers[1])})
    for used in (optimizer, keras.optimizers.LossScaleOptimizer(optimizer)):
        model.compile(used, loss="mse")
        callback = keras.callbacks.TensorBoard(tmp_path)
        callback.set_model(model)
        assert callback._collect_learning_rate({}) == pytest.approx(
            {"learning_rate_body": 0.1, "learning_rate_head": 0.2}
        )


def test_the_rate_cannot_be_assigned_behind_the_other_groups_backs():
    optimizer = GroupedOptimizer([(SGD(0.1), variable()), (SGD(0.2), variable())])
    with pytest.raises(AttributeError, match="assign"):
        optimizer.learning_rate.assign(0.5)
    assert optimizer.learning_rate.numpy() == np.float32(0.2)


def test_a_smaller_rate_makes_smaller_steps_also_of_adam():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(Adam(0.01), a), (Adam(0.1), b)])
    first = moved_by(optimizer, [a, b])
    optimizer.learning_rate = 0.05
    second = moved_by(optimizer, [a, b])
    assert first[1] / first[0] == pytest.approx(10, rel=1e-3)
    assert np.divide(second, first) == pytest.approx([0.5, 0.5], rel=1e-3)


def test_a_group_may_clip_its_own_gradients():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(SGD(1.0, clipvalue=0.25), a), (SGD(1.0, clipnorm=1.0), b)])
    assert moved_by(optimizer, [a, b]) == [0.25, 0.5]


def test_weight_decay_is_that_of_the_group_at_the_rate_of_the_group():
    a, b = variable("a"), variable("b")
    optimizer = GroupedOptimizer([(SGD(0.5, weight_decay=0.5), a), (SGD(0.25), b)])
    optimizer.apply([tf.zeros((2, 2))] * 2, [a, b])
    assert (float(a[0, 0]), float(b[0, 0])) == (0.75, 1.0)


def test_weight_decay_can_be_switched_off_for_variables_of_all_groups():
    a, b, bias = variable("a"), variable("b"), variable("bias")
    optimizer = GroupedOptimizer([(SGD(0.5, weight_decay=0.5), [a, bias]), (SGD(0.5, weight_decay=0.5), b)])
    optimizer.exclude_from_weight_decay(var_list=[b], var_names=["bias"])
    optimizer.apply([tf.zeros((2, 2))] * 3, [a, b, bias])
    assert [float(v[0, 0]) for v in (a, b, bias)] == [0.75, 1.0, 1.0]


# -- Freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [None, 1])
def test_a_moving_average_leaves_a_frozen_part_alone_to_the_last_bit(overwrite):
    frozen = tf.Variable(np.random.default_rng(0).standard_normal(1000).astype("f4"))
    trained = tf.Variable(np.ones(2, "f4"))
    before = frozen.numpy()
    optimizer = GroupedOptimizer(
        [(SGD(0.1), frozen), (SGD(0.1), trained)], use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=overwrite
    )
    for _ in range(5):
        optimizer.apply([tf.ones(2)], [trained])
    average = optimizer._model_variables_moving_average[0]
    np.testing.assert_array_equal(frozen.numpy(), before)
    np.testing.assert_array_equal(average.numpy(), before)


def test_an_average_goes_on_from_where_it_was_when_its_part_is_unfrozen():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), v), (SGD(1.0), other)], use_ema=True, ema_momentum=0.5)
    for variables in ([v, other], [other], [v, other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert float(optimizer._model_variables_moving_average[0][0]) == -1.5  # of -1 and -2


def test_an_average_does_not_overwrite_what_is_frozen_by_then():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), [v, other])], use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    for variables in ([v, other], [v, other], [other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert (float(v[0]), float(other[0])) == (-2, -2.25)


def test_what_is_accumulated_when_a_part_is_frozen_is_not_kept_for_later():
    v, other = tf.Variable([0.0]), tf.Variable([0.0])
    optimizer = GroupedOptimizer([(SGD(1.0), v), (SGD(1.0), other)], gradient_accumulation_steps=2)
    for variables in ([v, other], [other], [v, other], [v, other]):
        optimizer.apply([tf.ones(1)] * len(variables), variables)
    assert (float(v[0]), float(other[0])) == (-1, -2)


# -- Config and files -------------------------------------------------------------------------------------------------


def three_groups(model, **settings):
    rates = [keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), 0.2, 0.3]
    return GroupedOptimizer(
        {layer.name: (Adam(rate), layer) for rate, layer in zip(rates, model.layers, strict=True)}, **settings
    )


def test_a_config_makes_the_same_optimizer_again():
    model = make_model(*"abc")
    average = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    optimizer = three_groups(model, clipnorm=1.0, gradient_accumulation_steps=2, name="mine", **average)
    optimizer.build(model.trainable_variables)
    optimizer.learning_rate = 0.6
    config = keras.optimizers.serialize(optimizer)
    for again in (keras.optimizers.deserialize(config), keras.optimizers.get(config)):
        assert again.get_config() == optimizer.get_config()
        assert [type(child) for child in again.optimizers] == [Adam] * 3
        assert again.learning_rates == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3})  # as in the beginning


def test_a_config_remembers_the_models_order_and_what_was_frozen():
    model = make_model(*"ab")
    first, last = model.layers
    optimizer = GroupedOptimizer({"last": (SGD(0.1), last), "first": (SGD(0.1), first)})
    optimizer.build(model.trainable_variables)
    first.trainable = False
    config = optimizer.get_config()
    for again in (GroupedOptimizer.from_config(config), GroupedOptimizer.from_config(config)):
        assert again.get_config() == config
    variable_keys = [variable_key for group in config["groups"] for variable_key in group["variables"]]
    assert [(variable_key["position"], variable_key["trainable"]) for variable_key in variable_keys] == [
        (2, True),
        (3, True),
        (0, False),
        (1, False),
    ]


def test_an_optimizer_that_chooses_by_path_chooses_the_same_for_a_frozen_part(tmp_path):
    model = make_model("special", "head")
    muon = keras.optimizers.Muon(0.1, exclude_layers=["special"])  # updated as by Adam, with one slot more
    model.compile(GroupedOptimizer({"all": (muon, model)}), loss="mse")
    model.layers[0].trainable = False
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.shape for v in loaded.optimizer.variables] == [v.shape for v in model.optimizer.variables]


def names_by_group(optimizer):
    return {
        child.name: [v.path.split("/")[-2] for v in child._trainable_variables if v.path.endswith("kernel")]
        for child in optimizer.optimizers
    }


ALIKE = {"a": ["a"], "b": ["b"], "c": ["c"]}


def with_only(model, *names):
    for layer in model.layers:
        layer.trainable = layer.name in names
    return model.trainable_variables


@pytest.mark.parametrize("saved", ["abc", "bc", "a"])
@pytest.mark.parametrize("first", ["abc", "bc", "b"])
@pytest.mark.parametrize("listed", ["abc", "cba"])
def test_a_config_finds_its_variables_whatever_was_and_is_frozen(saved, first, listed):
    model, again = make_model(*"abc"), make_model(*"abc")
    layers = {layer.name: layer for layer in model.layers}
    optimizer = GroupedOptimizer({name: (SGD(0.1), layers[name]) for name in listed})
    optimizer.build(with_only(model, *saved))
    found = GroupedOptimizer.from_config(optimizer.get_config())
    for names in (first, "ab", "abc"):
        found.build(with_only(again, *names))
    assert names_by_group(found) == ALIKE
    variables = [v for child in found.optimizers for v in child._trainable_variables]
    assert {id(v) for v in variables} == {id(v) for v in again.trainable_variables}


def test_weight_decay_stays_off_for_variables_that_come_later():
    model, again = make_model(*"ab"), make_model(*"ab")
    child = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    child.exclude_from_weight_decay(var_names=["bias"])
    optimizer = GroupedOptimizer({"all": (child, model)})
    found = GroupedOptimizer.from_config(optimizer.get_config())
    for names in ("b", "ab"):
        found.build(with_only(again, *names))
        assert [s["weight_decay"] for s in found.get_config()["groups"][0]["variables"]] == [True, False] * 2
    biases = [layer.bias for layer in again.layers]
    for bias in biases:
        bias.assign([1.0, 1.0])
    found.apply([tf.zeros(v.shape) for v in again.trainable_variables], again.trainable_variables)
    assert [float(bias[0]) for bias in biases] == [1.0, 1.0]


def test_an_average_starts_where_a_part_is_that_comes_later():
    optimizer = GroupedOptimizer([(SGD(0.5), make_model(*"ab"))], use_ema=True, ema_momentum=0.5)
    found, model = GroupedOptimizer.from_config(optimizer.get_config()), make_model(*"ab")
    for names in ("b", "ab"):
        variables = with_only(model, *names)
        found.apply([tf.zeros(v.shape) for v in variables], variables)
    before = [v.numpy() for v in model.trainable_variables]
    found.finalize_variable_values(model.trainable_variables)
    for v, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_variables_of_another_model_are_an_error_that_names_what_is_still_to_come():
    optimizer = GroupedOptimizer.from_config(GroupedOptimizer({"a": (SGD(0.1), make_model("a"))}).get_config())
    other = make_model("a", units=3)
    text = message(lambda: optimizer.build(other.trainable_variables))
    assert text.startswith("An optimizer updates the variables that it was made for. 2 variables belong to no group: `")
    assert "(2, 3). Still to come are 2: `" not in text
    assert "Still to come are 2: `" in text
    assert text.endswith("Make a new one whose groups cover them.")


def test_layers_that_keras_numbered_anew_are_found_by_their_position():
    model, again = (make_model(None, None, units=2) for _ in range(2))
    optimizer = GroupedOptimizer({"first": (SGD(0.1), model.layers[0]), "last": (SGD(0.1), model.layers[1])})
    found = GroupedOptimizer.from_config(optimizer.get_config())
    found.build(again.trainable_variables)
    for child, layer in zip(found.optimizers, again.layers, strict=True):
        assert child._trainable_variables[0] is layer.kernel


def test_a_model_loaded_with_a_frozen_part_can_be_saved_and_loaded_again(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    step(model)
    expected = [v.numpy() for v in model.optimizer.variables]
    with_only(model, "c")
    for n in range(3):
        model.save(tmp_path / f"{n}.keras")
        model = keras.models.load_model(tmp_path / f"{n}.keras")
    for found, value in zip(model.optimizer.variables, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), value)
    with_only(model, "a", "b", "c")
    model.compile(model.optimizer, loss="mse")
    step(model)
    assert names_by_group(model.optimizer) == ALIKE
    tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))


def test_a_compiled_model_that_was_never_trained_can_be_saved_and_loaded(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    step(loaded)
    step(model)
    np.testing.assert_array_equal(loaded.layers[0].kernel.numpy(), model.layers[0].kernel.numpy())


def test_rates_that_were_written_come_back_with_the_state_and_keep_their_ratios(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.optimizer.learning_rate = 0.6
    model.optimizer.optimizers[1].learning_rate = 0.1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert loaded.learning_rates == pytest.approx({"a": 0.2, "b": 0.1, "c": 0.6})
    loaded.learning_rate = 0.3
    assert loaded.learning_rates == pytest.approx({"a": 0.1, "b": 0.05, "c": 0.3})


def test_rates_that_were_zero_in_the_file_keep_their_ratios(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.optimizer.learning_rate = 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert set(loaded.learning_rates.values()) == {0.0}
    loaded.learning_rate = 0.3
    assert loaded.learning_rates == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3})


def test_weights_alone_load_into_a_compiled_model(tmp_path):
    plain, model = make_model(*"abc"), make_model(*"abc")
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.compile(three_groups(model), loss="mse")
    step(model)
    model.load_weights(tmp_path / "plain.weights.h5")
    assert int(model.optimizer.iterations) == 1


def test_the_state_of_another_optimizer_is_an_error_and_loads_nothing(tmp_path):
    model, other = make_model(*"abc"), make_model(*"abc")
    other.compile(SGD(0.1), loss="mse")
    step(other)
    other.save_weights(tmp_path / "other.weights.h5")
    model.compile(three_groups(model), loss="mse")
    step(model)
    before = [v.numpy() for v in model.optimizer.variables]
    expected = (
        "An optimizer's state fits the optimizer it was saved from. The file holds 2 variables, this optimizer with the "
        "groups `a`, `b`, `c` has 17. No state was loaded. Use the same groups and optimizers, or load the weights before "
        "`compile`."
    )
    with pytest.raises(ValueError, match=re.escape(expected)):  # Keras' own, around ours
        model.load_weights(tmp_path / "other.weights.h5")
    for v, value in zip(model.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_a_state_of_other_shapes_is_an_error():
    small, large = make_model("a"), make_model("a", units=3)
    optimizer, other = GroupedOptimizer([(Adam(0.1), small)]), GroupedOptimizer([(Adam(0.1), large)])
    other.build(large.trainable_variables)
    with pytest.raises(GroupError, match=r"The file holds 7 variables.* has 7, of other shapes. No state was loaded"):
        optimizer.set_weights([v.numpy() for v in other.variables])


def test_weights_can_be_set_as_they_were_read():
    model = make_model(*"abc")
    model.compile(three_groups(model, use_ema=True), loss="mse")
    step(model)
    saved = [v.numpy() for v in model.optimizer.variables]
    step(model)
    model.optimizer.set_weights([value.tolist() for value in saved])
    for v, value in zip(model.optimizer.variables, saved, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_the_variables_are_each_there_once():
    model = make_model(*"abc")
    optimizer = three_groups(model, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(model.trainable_variables)
    assert len({id(v) for v in optimizer.variables}) == len(optimizer.variables) == 1 + 1 + 2 * 6 + 2 + 2 * 6 + 1
    assert sum(v is optimizer._iterations for v in optimizer.variables) == 1


@pytest.mark.parametrize("wrap", [False, True])
def test_loss_scaling_state_comes_back_too(wrap, tmp_path):
    model = make_model(*"abc")
    optimizer = three_groups(model)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer, loss="mse")
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for v, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(v.numpy(), other.numpy())


# -- Replicas ---------------------------------------------------------------------------------------------------------

REPLICAS = """
    import keras
    import numpy as np
    import tensorflow as tf
    from finetune.optimizers.grouped import GroupedOptimizer

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    X = np.random.default_rng(0).integers(0, 5, (16, 3))
    Y = np.random.default_rng(1).standard_normal((16, 2)).astype("f4")

    def train(strategy, **settings):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            layers = [keras.layers.Embedding(5, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
            model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
            optimizer = GroupedOptimizer({
                "body": (keras.optimizers.AdamW(0.1, weight_decay=0.1), layers[0]),
                "head": (keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)), layers[2]),
            }, **settings)
            optimizer.build(model.trainable_variables)
        model.compile(optimizer, loss="mse", jit_compile=False)
        model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return [v.numpy() for v in model.variables], int(keras.ops.convert_to_numpy(optimizer.iterations))

    for settings in [
        {},
        {"global_clipnorm": 0.05},
        {"clipnorm": 0.05},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    ]:
        (one, steps), (two, count) = train(tf.distribute.get_strategy(), **settings), train(mirrored, **settings)
        assert steps == count, settings
        worst = max(float(np.abs(a - b).max()) for a, b in zip(one, two))
        print(settings, "worst", worst)
        assert worst < 1e-6, (settings, worst)
"""


@pytest.mark.slow
def test_two_replicas_train_as_one():
    program = [sys.executable, "-c", textwrap.dedent(REPLICAS)]  # a process of its own: devices are set once
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("worst") == 6
