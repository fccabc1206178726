import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.variable_keys import VariableKey, label, match_keys

SGD = keras.optimizers.SGD
ONES = np.ones((1, 2), "f4")


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def step(model):
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(ONES) - 3.0) ** 2)
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


def test_a_variable_of_no_group_is_an_error_that_names_it():
    model = make_model("a", "b")
    optimizer = GroupedOptimizer({"a": (SGD(0.1), model.layers[0])})
    expected = (
        "An optimizer updates the variables that it was made for. 2 variables belong to no group: "
        f"`{model.name}/b/kernel` (2, 2), `{model.name}/b/bias` (2,). All variables of the groups are matched already. Make "
        "a new optimizer whose groups cover them."
    )
    assert message(lambda: optimizer.build(model.trainable_variables)) == expected
    model.compile(optimizer, loss="mse")
    assert message(lambda: step(model)) == expected


def test_variables_of_another_model_are_an_error_that_names_what_is_still_to_come():
    optimizer = GroupedOptimizer.from_config(GroupedOptimizer({"a": (SGD(0.1), make_model("a"))}).get_config())
    other = make_model("a", units=3)
    text = message(lambda: optimizer.build(other.trainable_variables))
    assert text.startswith("An optimizer updates the variables that it was made for. 2 variables belong to no group: `")
    assert "(2, 3). 2 variables of the groups are not matched yet: `" not in text
    assert "2 variables of the groups are not matched yet: `" in text
    assert text.endswith("Make a new optimizer whose groups cover them.")


def key(position, path, shape=(2,), *, trainable=True):
    return VariableKey(position, path.split("/")[-1], path, shape, "float32", trainable, True)


def variables(*paths):
    made = []
    for path in paths:
        scope, name = path.rsplit("/", 1)
        with keras.name_scope(scope):
            made.append(keras.Variable([0.0, 0.0], name=name))
    return made


def test_the_key_of_a_variable_says_where_it_is_and_what():
    with keras.name_scope("body"):
        variable = keras.Variable(np.zeros((2, 3), "f4"), name="kernel", trainable=False)
    assert VariableKey.of(variable, False) == VariableKey(-1, "kernel", "body/kernel", (2, 3), "float32", False, False)
    bare = VariableKey.of(tf.Variable(tf.zeros(3, tf.float64), name="w"), True)
    assert bare == VariableKey(-1, "w", "w", (3,), "float64", True, True)


def test_a_key_read_from_json_is_the_same():
    first = key(3, "body/kernel", (2, 3))
    assert VariableKey.from_dict({**vars(first), "shape": [2, 3]}) == first


def test_a_placeholder_has_the_path_the_shape_and_the_type():
    placeholder = key(0, "seq/body/kernel", (2, 3)).placeholder()
    assert (placeholder.path, placeholder.shape, placeholder.dtype) == ("seq/body/kernel", (2, 3), "float32")


def test_variables_are_found_by_the_ends_of_their_paths_in_whatever_order():
    keys = [key(0, "seq/a/kernel"), key(1, "seq/b/kernel")]
    found = match_keys(variables("b/kernel", "a/kernel"), keys)
    assert [(k.path, v.path) for k, v in found] == [("seq/b/kernel", "b/kernel"), ("seq/a/kernel", "a/kernel")]


def test_variables_whose_layers_have_other_names_are_found_by_position():
    keys = [key(1, "dense_1/kernel"), key(0, "dense/kernel")]
    found = match_keys(variables("dense_7/kernel", "dense_8/kernel"), keys)
    assert [k.position for k, _ in found] == [0, 1]


@pytest.mark.parametrize(("trainable", "positions"), [((True, False, True), [0, 2]), ((False, True, False), [0, 2])])
def test_a_part_comes_by_position_if_it_was_what_was_trainable_or_what_was_frozen(trainable, positions):
    keys = [key(i, f"dense_{i}/kernel", trainable=on) for i, on in enumerate(trainable)]
    found = match_keys(variables("dense_7/kernel", "dense_8/kernel"), keys)
    assert [k.position for k, _ in found] == positions


def test_branches_with_layers_of_one_name_are_taken_in_their_order():
    keys = [key(1, "right/conv/kernel"), key(0, "left/conv/kernel")]
    found = match_keys(variables("conv/kernel", "conv/kernel"), keys)
    assert [k.path for k, _ in found] == ["left/conv/kernel", "right/conv/kernel"]


@pytest.mark.parametrize("paths", [["a/bias"], ["b/kernel", "c/kernel", "d/kernel"]])
def test_variables_that_fit_neither_way_are_an_error(paths):
    keys = [key(0, "a/kernel"), key(1, "b/kernel")]
    text = message(lambda: match_keys(variables(*paths), keys))
    assert text.endswith(
        "2 variables of the groups are not matched yet: `a/kernel (2,)`, `b/kernel (2,)`. If the variables without a group "
        "were frozen one by one when the model was saved: Keras' files hold only whether a layer is trainable. Load the "
        "model with `compile=False`, set `variable.trainable = False` again, and compile it anew. Make a new optimizer "
        "whose groups cover them."
    )


def test_another_shape_is_another_variable():
    assert "belong to no group" in message(lambda: match_keys(variables("a/kernel"), [key(0, "a/kernel", (3,))]))


def test_a_label_is_the_path_with_the_shape():
    assert label(variables("a/kernel")[0]) == "`a/kernel` (2,)"
    assert label(tf.Variable(tf.zeros((1, 2)), name="w")) == "`w:0` (1, 2)"
