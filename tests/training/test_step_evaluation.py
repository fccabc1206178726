import csv

import keras
import numpy as np
import tensorflow as tf

from finetune import FastLoop, GroupedOptimizer
from finetune.training.step_evaluation import EvaluateBySteps


class Watcher:
    """Notes what it is told."""

    def __init__(self):
        self.seen = []

    def on_evaluation(self, epoch, step, logs):
        self.seen.append((epoch, step, sorted(logs)))


def fit(*callbacks, steps_per_execution=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    groups = [(keras.optimizers.SGD(0.01), model)]
    model.compile(GroupedOptimizer(groups), "mse", metrics=["mae"], steps_per_execution=steps_per_execution)
    x, y = np.ones((14, 4), "float32"), np.ones((14, 2), "float32")
    history = model.fit(x, y, batch_size=2, epochs=2, validation_data=(x, y), verbose=0, callbacks=list(callbacks))
    assert int(model.optimizer.iterations) == 14
    return history.history, model.get_weights()


def test_evaluations_within_an_epoch_leave_the_training_as_it_is(tmp_path):
    validation = tf.data.Dataset.from_tensor_slices((np.ones((6, 4)), np.zeros((6, 2)))).batch(3)
    said, watcher = [], Watcher()
    evaluation = EvaluateBySteps(validation, 3, tmp_path / "evaluations.csv", said.append)
    evaluation.watchers = [watcher]
    history, weights = fit(evaluation)
    plain, expected = fit()
    assert history == plain
    assert all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))
    places = [(0, 3), (0, 6), (1, 3), (1, 6)]  # of 7 steps, the last is followed by the validation of Keras
    assert watcher.seen == [(*place, ["val_loss", "val_mae"]) for place in places]
    rows = list(csv.DictReader((tmp_path / "evaluations.csv").read_text().splitlines()))
    assert [(int(row["epoch"]) - 1, int(row["step"])) for row in rows] == places
    assert said[0].startswith("epoch 1, step 3: val_loss ")


def test_calls_of_several_steps_make_all_steps_of_an_epoch(tmp_path):
    validation = tf.data.Dataset.from_tensor_slices((np.ones((6, 4)), np.zeros((6, 2)))).batch(3)
    evaluation = EvaluateBySteps(validation, 3, tmp_path / "evaluations.csv", lambda line: None)
    history, weights = fit(FastLoop(), evaluation, steps_per_execution=4)
    plain, expected = fit(FastLoop(), steps_per_execution=4)
    assert history == plain
    assert all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert [(row["epoch"], row["step"]) for row in evaluation.rows] == [(1, 4), (2, 4)]


def test_what_a_process_before_has_evaluated_is_not_evaluated_again(tmp_path):
    validation = tf.data.Dataset.from_tensor_slices((np.ones((6, 4)), np.zeros((6, 2)))).batch(3)
    evaluation = EvaluateBySteps(validation, 3, tmp_path / "evaluations.csv", lambda line: None)
    evaluation.place = (0, 6)
    fit(evaluation)
    assert [(row["epoch"], row["step"]) for row in evaluation.rows] == [(2, 3), (2, 6)]
