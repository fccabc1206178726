import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.group import Group
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.members import Members, variables_of
from finetune.optimizers.variable_keys import VariableKey

SGD = keras.optimizers.SGD
ONES = np.ones((1, 2), "f4")


def variable(name="kernel", shape=(2, 2), scope=None, value=1.0):
    with keras.name_scope(scope or "layer"):
        return keras.Variable(np.full(shape, value, "f4"), name=name)


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


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
    assert [variable is loaded.w for variable in variables_of("all", loaded, id)] == [True]


@pytest.mark.parametrize("members", [[], keras.layers.Dropout(0.1), [[], ()]], ids=range(3))
def test_a_group_without_variables_is_an_error(members):
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1), members)})) == (
        "A group must contain at least one trainable variable. Group `body` has none. Pass layers with weights, or remove "
        "the group."
    )


@pytest.mark.parametrize("member", ["dense", {"a": 1}, 3, b"x", SGD(0.1), tf.constant([1.0])], ids=range(6))
def test_a_member_without_variables_is_an_error(member):
    assert message(lambda: GroupedOptimizer({"body": (SGD(0.1), [member])})) == (
        "A group's members are layer groups, layers, variables or sequences of these. Group `body` received "
        f"`{member!r}`. To choose layers by name, use `finetune.resolve_groups`."
    )


def test_a_layer_that_is_never_built_is_an_error_at_the_first_step():
    optimizer = GroupedOptimizer({"body": (SGD(0.1), keras.layers.Dense(2, name="late"))})
    v = variable()
    for use in (lambda: optimizer.apply([tf.ones((2, 2))], [v]), optimizer.get_config, lambda: optimizer.build([v])):
        assert message(use) == (
            "The weights of a group must exist. Group `body` holds the layer `late`, which has no weights yet. Build the model "
            "first: call it on a batch, or give it a `keras.Input`."
        )


def test_a_variable_in_two_groups_is_an_error_that_names_five():
    model = make_model(*"abcd")
    text = message(lambda: GroupedOptimizer({"all": (SGD(0.1), model), "again": (SGD(0.1), model.layers[:3])}))
    assert text == (
        "A variable belongs to exactly one group. These variables are in two groups: `a/kernel` (2, 2) (`all` and `again`), `a/bias` (2,) "
        "(`all` and `again`), `b/kernel` (2, 2) (`all` and `again`), `b/bias` (2,) (`all` and `again`), `c/kernel` (2, 2) "
        "(`all` and `again`) and 1 more. Remove each from all groups but one."
    ).replace("`a/", f"`{model.name}/a/").replace("`b/", f"`{model.name}/b/").replace("`c/", f"`{model.name}/c/")


def test_a_variable_and_a_keras_variable_around_it_are_the_same():
    native = tf.Variable(tf.ones(2))
    around = keras.Variable(native, name="around")
    assert "These variables are in two groups" in message(
        lambda: GroupedOptimizer([(SGD(0.1), native), (SGD(0.1), around.value)])
    )


def test_gradients_alone_go_to_the_variables_in_the_order_of_build():
    a, b = variable("a", value=1.0), variable("b", value=1.0)
    optimizer = GroupedOptimizer({"a": (SGD(1.0), a), "b": (SGD(1.0), b)})
    optimizer.build([b, a])
    optimizer.apply([tf.fill((2, 2), 10.0), tf.fill((2, 2), 20.0)])
    assert (float(b[0, 0]), float(a[0, 0])) == (-9, -19)


def members_of(**groups):
    return Members([Group(name, SGD(0.1), variables) for name, variables in groups.items()], id)


def test_the_order_is_that_of_the_model_also_of_a_part_of_it():
    a, b, c = (variable(name) for name in "abc")
    members = members_of(last=[c], first=[a, b])
    assert members.order == [c, a, b]
    assert members.admit([a, b, c]) == []
    assert [v is w for v, w in zip(members.order, (a, b, c), strict=True)] == [True] * 3
    members.admit([c, a])
    assert [v is w for v, w in zip(members.order, (c, b, a), strict=True)] == [True] * 3


def test_columns_are_split_by_group_input_to_output_and_groups_without_a_row_are_left_out():
    a, b, c = (variable(name) for name in "abc")
    members = members_of(first=[a], middle=[b], last=[c])
    split = list(members.by_group([1, 2], [c, a]))
    first, _, last = (group.optimizer for group in members.groups)
    assert [optimizer for optimizer, _ in split] == [first, last]
    assert [columns[0] for _, columns in split] == [[2], [1]]
    assert split[0][1][1][0] is a


def test_a_group_is_found_by_its_name_and_an_unknown_name_is_an_error_with_the_nearest():
    members = members_of(body=[variable()], head=[variable()])
    assert members.named("head") is members.groups[1]
    text = message(lambda: members.named("hed"))
    assert text == "There is no group `hed`. The groups are `body`, `head`. Did you mean `head`?"


def test_an_optimizer_that_is_made_from_a_config_trains_the_variables_of_the_new_model_in_its_order():
    model, new = make_model("a", "b"), make_model("a", "b")
    groups = {"b": (SGD(0.125), model.get_layer("b")), "a": (SGD(0.5), model.get_layer("a"))}
    optimizer = GroupedOptimizer(groups)
    again = GroupedOptimizer.from_config(optimizer.get_config())
    before = [v.numpy() for v in new.trainable_variables]
    again.build(new.trainable_variables)
    again.apply([tf.ones(v.shape) for v in new.trainable_variables], new.trainable_variables)
    moved = [float((old - v.numpy()).max()) for old, v in zip(before, new.trainable_variables, strict=True)]
    assert moved == pytest.approx([0.5, 0.5, 0.125, 0.125])


def test_a_layer_that_is_built_later_does_not_keep_another_group_from_being_made():
    late, built = keras.layers.Dense(2), make_model("a")
    optimizer = GroupedOptimizer({"a": (SGD(0.1), built), "late": (SGD(0.1), late)})
    late.build((None, 2))
    variables = [*built.trainable_variables, *late.trainable_variables]
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    assert int(optimizer.iterations) == 1


def awaiting(*names):
    """Two groups, output to input, of placeholders for variables that a model has in the order of the names."""
    keys = [VariableKey(i, "kernel", f"{name}/kernel", (2, 2), "float32", True, True) for i, name in enumerate(names)]
    placeholders = [key.placeholder() for key in keys]
    *body, head = placeholders
    members = members_of(head=[head], body=body)
    members.await_model({id(v): key for v, key in zip(placeholders, keys, strict=True)})
    return members, placeholders


def same(some, others):
    return [id(v) for v in some] == [id(v) for v in others]


def test_placeholders_are_in_the_order_of_the_model_that_is_awaited():
    members, placeholders = awaiting("a", "b", "c")
    assert same(members.order, placeholders)


def test_the_variables_of_the_model_take_the_places_of_their_placeholders():
    members, placeholders = awaiting("a", "b", "c")
    a, b, c = (variable(scope=name) for name in "abc")
    replaced = members.admit([b])
    assert [(id(old), id(new)) for old, new in replaced] == [(id(placeholders[1]), id(b))]
    assert same(members.order, [placeholders[0], b, placeholders[2]])
    assert same(members.named("body").variables, [placeholders[0], b])
    members.admit([a, b, c])
    assert same(members.order, [a, b, c])
    assert same(members.named("body").variables, [a, b])
    assert same(members.named("head").variables, [c])


def test_a_config_has_the_place_of_every_variable_in_types_that_a_json_file_gives_back():
    members, _ = awaiting("a", "b")
    members.admit([variable(scope="b")])
    fields = members.variable_keys()
    assert json.loads(json.dumps(fields)) == fields
    assert [fields[name][0]["position"] for name in ("body", "head")] == [0, 1]
    assert fields["body"][0]["path"] == "a/kernel"
