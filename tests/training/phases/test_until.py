"""Whether a phase ends early, and with which weights."""

import keras
import numpy as np

from finetune.training.phases.phase import Phase
from finetune.training.phases.until import Until, until_callbacks


def test_a_phase_ends_when_its_metric_no_longer_gets_better_and_the_next_one_follows(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    phases = [Phase(["head"], 9, until=Until("loss", patience=1, min_delta=100.0)), Phase(epochs=1)]
    records = train(model, groups, phases, rows)
    assert [(record.epochs, record.epochs_left) for record in records] == [(2, 7), (1, 0)]


def test_nothing_is_watched_unless_a_phase_asks_for_it():
    assert until_callbacks(None) == []


def test_until_is_early_stopping_of_keras_with_the_same_settings():
    _, callback = until_callbacks(Until("accuracy", patience=2, min_delta=0.5, mode="max", restore_best=True))
    assert isinstance(callback, keras.callbacks.EarlyStopping)
    assert (callback.monitor, callback.patience, callback.min_delta) == ("accuracy", 2, 0.5)
    assert callback.mode == "max"
    assert callback.restore_best_weights


def test_until_may_end_a_phase_with_the_weights_of_its_best_epoch(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    bias = []
    end = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: bias.append(np.array(model.weights[-1])))
    until = Until("loss", patience=1, min_delta=100.0, restore_best=True)
    train(model, groups, [Phase(epochs=9, until=until)], rows, callbacks=[end])
    np.testing.assert_array_equal(np.array(model.weights[-1]), bias[0])
    assert not np.array_equal(bias[0], bias[1])


def test_until_has_the_defaults_of_keras():
    (_, stops), keras_stops = until_callbacks(Until()), keras.callbacks.EarlyStopping()
    for name in ("monitor", "patience", "min_delta", "mode", "restore_best_weights"):
        assert getattr(stops, name) == getattr(keras_stops, name), name
