import keras
import numpy as np

from finetune.optimizers.grouped import GroupedOptimizer

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


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


def test_the_variables_are_each_there_once():
    model = make_model(*"abc")
    optimizer = three_groups(model, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(model.trainable_variables)
    assert len({id(v) for v in optimizer.variables}) == len(optimizer.variables) == 1 + 1 + 2 * 6 + 2 + 2 * 6 + 1
    assert sum(v is optimizer._iterations for v in optimizer.variables) == 1


def three_groups(model, **settings):
    rates = [keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), 0.2, 0.3]
    return GroupedOptimizer(
        {layer.name: (Adam(rate), layer) for rate, layer in zip(rates, model.layers, strict=True)}, **settings
    )
