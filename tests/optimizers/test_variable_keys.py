import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.optimizers.grouped import GroupedOptimizer

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
        f"`{model.name}/b/kernel` (2, 2), `{model.name}/b/bias` (2,). All variables of the groups are there already. Make "
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
    assert "(2, 3). Still to come are 2: `" not in text
    assert "Still to come are 2: `" in text
    assert text.endswith("Make a new optimizer whose groups cover them.")
