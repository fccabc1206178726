from dataclasses import replace

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.training.label_thresholds import label_thresholds


@pytest.fixture
def model():
    """A network whose outputs are its inputs."""
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    model.compile("sgd", "binary_crossentropy")
    return model


def examples(y, **more):
    x = np.array([[0.1, 0.1], [0.2, 0.3], [0.4, 0.2], [0.3, 0.9]], "float32")
    y = np.array(y, "float32")
    return Examples(x, y, x, y, source={"target": {"class_names": ["a", "b"]}}, class_names=("a", "b"), **more), x, y


def test_each_label_has_the_threshold_that_is_best_on_the_validation_rows(model):
    y = [[0, 0], [1, 0], [1, 0], [1, 1]]
    own, x, y = examples(y, x_validation=np.zeros((1, 2)), y_validation=np.zeros((1, 2)))
    chosen = label_thresholds(model, replace(own, x_validation=x, y_validation=y))
    assert chosen[""] == pytest.approx({"a": 0.15, "b": 0.6})


def test_a_label_of_no_row_and_data_without_validation_rows_have_none(model):
    own, x, y = examples([[0, 0], [1, 0], [1, 0], [1, 0]])
    assert label_thresholds(model, own) == {}
    assert set(label_thresholds(model, replace(own, x_validation=x, y_validation=y))[""]) == {"a"}
    model.compile("sgd", "mean_squared_error")
    assert label_thresholds(model, replace(own, x_validation=x, y_validation=y)) == {}
