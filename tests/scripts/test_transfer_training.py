"""Trainings in one process end with the weights of `train_phases`, and do not depend on those before them."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
GROUPS = {"stem": ("conv", "bn"), "middle": ("dense",), "head": ("head",)}


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("transfer_training")
    sys.path.remove(str(SCRIPTS))


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization(momentum=0.5, name="bn")(keras.layers.Conv2D(3, 3, name="conv")(x))
    x = keras.layers.Dense(5, activation="relu", name="dense")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="head")(x))
    selectors = [finetune.Selector(name, prefixes=layers) for name, layers in GROUPS.items()]
    return model, finetune.resolve_groups(model, selectors)


@pytest.fixture(scope="module")
def trainer(training):
    model, groups = network()
    return training.Trainer(model, groups, steps_per_epoch=2, batch_size=4)


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    return random.normal(size=(10, 4, 4, 1)).astype("float32"), random.integers(0, 3, 10)


def phases(training, peak):
    """The head alone, then two groups, whose slots and clocks begin then, then all; one schedule over the run."""
    rate, slow = training.decayed(peak, 8), training.decayed(peak / 10, 8)
    everything = {"stem": slow, "middle": slow, "head": rate}
    return [
        finetune.Phase("head", epochs=1, rates={"head": rate}),
        finetune.Phase(["middle", "head"], epochs=1, rates={"middle": slow, "head": rate}),
        finetune.Phase(epochs=2, rates=everything),
    ]


def test_a_training_ends_with_the_weights_of_train_phases(training, trainer, rows):
    model, groups = network()
    weights, (x, y) = model.get_weights(), rows
    # The same batches in the same order: every epoch of `train_phases` takes the next two.
    order = training.orders(10, 4, 2, 4, seed=3).reshape(-1)
    at = iter(range(0, len(order), 4))

    def batches():
        while True:
            of_batch = order[next(at) :][:4]
            yield x[of_batch], y[of_batch]

    optimizer = finetune.GroupedOptimizer({group.name: (keras.optimizers.AdamW(1.0), group) for group in groups})
    model.compile(optimizer, loss=training.LOSS)
    finetune.train_phases(model, groups, phases(training, 1e-2), batches(), steps_per_epoch=2, shuffle=False)
    trainer.begin(weights)
    trainer.fit(x, y, phases(training, 1e-2), seed=3)
    assert not np.allclose(weights[0], trainer.model.get_weights()[0], atol=1e-4)
    for ours, expected in zip(trainer.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_training_does_not_depend_on_those_before_it(training, trainer, rows):
    x, y = rows
    weights = network()[0].get_weights()
    results = []
    for peak, seed in ((1e-2, 0), (1e-1, 1), (1e-2, 0)):
        trainer.begin(weights)
        trainer.fit(x, y, [*phases(training, peak), finetune.Phase(epochs=1, auto_rgn=peak)], seed)
        results.append(trainer.model.get_weights())
    for first, again in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(results[0][0], results[1][0])


def test_batches_are_shuffled_passes_over_the_rows(training):
    order = training.orders(6, epochs=3, steps=2, batch_size=2, seed=0)
    assert order.shape == (3, 2, 2)
    for part in order.reshape(2, 6):
        assert sorted(part) == [*range(6)]
    assert not np.array_equal(order, training.orders(6, 3, 2, 2, seed=1))
