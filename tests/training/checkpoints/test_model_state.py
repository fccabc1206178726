import json
import random

import keras
import numpy as np
import pytest

from finetune import GroupedOptimizer
from finetune.errors import TrainingError
from finetune.training.checkpoints.model_state import metrics_state, model_state, restore_model
from finetune.training.snapshot import seeds


def trained(units=3, *, fit=True):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(units), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(GroupedOptimizer([(keras.optimizers.Adam(0.01), model)]), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    if fit:
        model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    return model


def values(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [variable.numpy().tobytes() for variable in variables]


def test_everything_comes_back_also_the_random_state():
    model = trained()
    keras.random.uniform(())  # makes the generator
    arrays, document = model_state(model)
    document = json.loads(json.dumps(document))
    before, drawn = values(model), (random.random(), np.random.random(), float(keras.random.uniform(())))
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    assert values(model) != before
    restore_model(model, arrays, document, source="file")
    assert values(model) == before
    assert (random.random(), np.random.random(), float(keras.random.uniform(()))) == drawn


def test_a_variable_is_saved_once():
    arrays, _ = model_state(trained())
    # 4 weights and the seed; 2 slots for each weight, the counters of the optimizer and its group; loss, and mae.
    names = [name.split("/")[0] for name in arrays]
    assert names.count("model") == 5
    assert names.count("metrics") == len(metrics_state(trained()))


def test_metrics_that_are_not_built_are_left_out():
    arrays, document = model_state(trained())
    model = trained(fit=False)
    restore_model(model, arrays, document, source="file")
    assert int(model.optimizer.iterations) == 1


def test_the_state_of_another_model_is_refused_and_nothing_changes():
    arrays, document = model_state(trained())
    model = trained(5, fit=False)
    before = values(model)
    with pytest.raises(TrainingError) as error:
        restore_model(model, arrays, document, source="step-1.safetensors")
    assert "`step-1.safetensors` holds, of the model, `" in str(error.value)
    assert "shape (4, 3), float32, which is here of shape (4, 5), float32" in str(error.value)
    assert values(model) == before


def test_the_seeds_are_what_random_layers_count():
    model = trained()
    assert [variable.shape for variable in seeds(model)] == [(2,)]
