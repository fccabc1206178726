import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune import GroupedOptimizer
from finetune.data.batches import training_batches
from finetune.distribution import workers as module
from finetune.distribution.channel import Channel, Limits
from finetune.distribution.cluster import Cluster
from finetune.distribution.workers import Workers, training_together
from finetune.errors import TrainingError
from finetune.training.fast.fast_loop import FastLoop, train_function


@pytest.fixture
def lone(monkeypatch):
    """Makes this process a worker without others, whose sums are what it has itself."""
    workers = Workers(Channel(Cluster(("127.0.0.1:1",), 0), {}, Limits()), tf.distribute.get_strategy())
    monkeypatch.setattr(module, "_joined", workers)
    return workers


def trained(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)])
    model.compile(
        GroupedOptimizer([(keras.optimizers.Adam(1e-2), model)], global_clipnorm=1.0), "mse", metrics=["mae"], **options
    )
    x = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
    batches = training_batches(x, x[:, :3], batch_size=4)
    history = model.fit(batches, steps_per_epoch=3, epochs=2, shuffle=False, verbose=0, callbacks=[FastLoop()])
    return [weight.numpy() for weight in model.weights], history.history


@pytest.mark.parametrize("pads", [False, True])
def test_a_worker_without_others_trains_as_a_process_alone(lone, pads):
    alone, metrics = trained(steps_per_execution=3)
    lone.pads = pads
    with training_together():
        together, metrics_together = trained(steps_per_execution=3)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for key, values in metrics.items():
        np.testing.assert_allclose(values, metrics_together[key], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "why"), [({"jit_compile": True}, "XLA compiles its step"), ({"run_eagerly": True}, "it runs eagerly")]
)
def test_a_model_that_keeps_the_loop_of_keras_is_not_trained_by_several(lone, options, why):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="net")
    model.compile("sgd", "mse", **options)
    with training_together(), pytest.raises(TrainingError) as caught:
        train_function(model)
    assert str(caught.value) == (
        "Several workers or replicas sum the gradients of each step in the fast loop, which cannot train "
        f"`net`: {why}. Train in a single process on a single device, or change that."
    )
