"""A model that does anything else than Keras' own compiled step keeps Keras' loop, and the reason is named."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from finetune.training.fast.fallback_reasons import reason_against


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


class OwnMetrics(keras.Sequential):
    def compute_metrics(self, *arguments, **more):
        return super().compute_metrics(*arguments, **more)


def compiled(make=keras.Sequential, **options):
    model = make([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "mse", **options)
    return model


def test_a_plain_compiled_model_has_no_reason():
    assert reason_against(compiled(jit_compile=False)) is None
    assert reason_against(compiled()) is None  # `auto`, which does not compile with XLA on a CPU


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (OwnStep, {}, "`OwnStep` has its own `train_step`"),
        (OwnMetrics, {}, "`OwnMetrics` has its own `compute_metrics`"),
        (keras.Sequential, {"run_eagerly": True}, "it runs eagerly"),
        (keras.Sequential, {"jit_compile": True}, "XLA compiles its step"),
    ],
)
def test_another_step_than_keras_own_compiled_one_is_a_reason(make, options, reason):
    assert reason_against(compiled(make, **options)) == reason


def test_a_model_that_fit_will_build_is_not_built_yet():
    model = keras.Sequential([layers.Dense(3)])
    model.compile("sgd", "mse")
    assert reason_against(model) == "it is not built yet"


def test_a_distribution_strategy_is_a_reason_inside_its_scope():
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert reason_against(compiled()) == "it has several replicas"
