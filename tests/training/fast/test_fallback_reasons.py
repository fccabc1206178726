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


class OwnResults(keras.Sequential):
    def get_metrics_result(self):
        return super().get_metrics_result()


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
        (OwnResults, {}, "`OwnResults` has its own `get_metrics_result`"),
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


def test_a_step_that_is_assigned_to_the_model_itself_is_a_reason():
    model = compiled()
    model.train_step = lambda data: {}
    assert reason_against(model) == "`Sequential` has its own `train_step`"


def test_functions_that_run_eagerly_are_a_reason():
    model = compiled()
    tf.config.run_functions_eagerly(True)
    try:
        assert reason_against(model) == "it runs eagerly"
    finally:
        tf.config.run_functions_eagerly(False)


def test_nothing_to_train_is_a_reason():
    model = compiled()
    model.trainable = False
    assert reason_against(model) == "it has no trainable weights"
