"""Groups from Keras' `OptimizerMap` are those that its `MultiOptimizer` makes, without its silence."""

import keras
import numpy as np
import pytest

from finetune.errors import GroupError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.optimizer_map import groups_of_map

OptimizerMap, SGD = keras.optimizers.OptimizerMap, keras.optimizers.SGD


def test_a_step_is_that_of_the_multi_optimizer_of_keras(tiny, rows):
    def trained(make):
        keras.utils.set_random_seed(0)
        model = tiny()
        written = {
            "tiny/stem/kernel": SGD(0.1),
            "tiny/(stem|bn)/.*": SGD(0.05, momentum=0.9),
            "tiny/head/.*": keras.optimizers.Adam(1e-2),
        }
        model.compile(
            make(model, OptimizerMap(SGD(0.01), written)), "sparse_categorical_crossentropy", jit_compile=False
        )
        model.fit(*rows, epochs=1, verbose=0, shuffle=False)
        return model

    theirs = trained(lambda model, written: keras.optimizers.MultiOptimizer(written))
    ours = trained(GroupedOptimizer.from_optimizer_map)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert ours.optimizer.group_names == ("tiny-stem-kernel", "tiny-stem-bn", "default", "tiny-head")


def test_keys_with_one_optimizer_are_one_group_and_a_default_without_variables_is_none(tiny):
    shared = SGD(0.1)
    groups = groups_of_map(
        tiny(), OptimizerMap(SGD(), {"tiny/stem/.*": shared, "tiny/head/.*": shared, ".*/bn/.*|.*/body/.*": SGD(0.2)})
    )
    assert {name: len(variables) for name, (_, variables) in groups.items()} == {"tiny-stem": 4, "bn-body": 4}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            lambda: OptimizerMap(SGD(), {"hed/.*": SGD()}),
            r"`hed/.*` matches nothing, and Keras would train.* Paths are",
        ),
        (lambda: OptimizerMap(SGD(), {"head/.*": SGD()}), r"There is `tiny/head/kernel`: write `\.\*/head/\.\*`"),
        (
            lambda: OptimizerMap(SGD(), {".*kernel": SGD(), "tiny/head/.*": SGD()}),
            r"The keys `.*kernel`, `tiny/head/.*` all match",
        ),
        (lambda: [(SGD(), "head")], "Received a `list`.*pass pairs of an optimizer and layers to `GroupedOptimizer`"),
    ],
)
def test_what_keras_passes_over_is_an_error(tiny, written, message):
    with pytest.raises(GroupError, match=message):
        GroupedOptimizer.from_optimizer_map(tiny(), written())


def test_a_model_without_variables_is_to_be_built_first():
    with pytest.raises(GroupError, match=r"has none yet. Build it first"):
        groups_of_map(keras.Sequential([keras.layers.Dense(2)]), OptimizerMap(SGD()))
