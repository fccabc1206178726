import os
import signal

import keras
import pytest
import tensorflow as tf

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.cluster import Cluster
from finetune.distribution.workers import Workers
from finetune.interruption import Stopped, deferred, stoppable
from finetune.training.together import SameWeights, StopTogether


@pytest.fixture
def lone():
    """A worker without others."""
    return Workers(Channel(Cluster(("127.0.0.1:1",), 0), {}, Limits()), tf.distribute.get_strategy())


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_a_signal_stops_at_the_end_of_a_step(lone, model):
    steps = []
    signalling = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: (
            steps.append(batch),
            batch == 1 and os.kill(os.getpid(), signal.SIGTERM),
        )
    )
    options = {"batch_size": 2, "epochs": 2, "verbose": 0}
    with pytest.raises(Stopped) as caught, stoppable(), deferred():
        model.fit(tf.ones((8, 2)), tf.ones((8, 1)), callbacks=[signalling, StopTogether(lone)], **options)
    assert steps == [0, 1]
    assert caught.value.exit_code == 143


def test_without_a_signal_training_goes_on(lone, model):
    callbacks = [StopTogether(lone), SameWeights(lone)]
    with stoppable():
        history = model.fit(tf.ones((8, 2)), tf.ones((8, 1)), epochs=2, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == 2
