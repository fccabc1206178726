"""How a phase lowers its rates when a metric no longer gets better."""

import keras
import pytest

from finetune.training.phases.phase import Phase
from finetune.training.phases.plateau import Plateau, plateau_callbacks


def test_what_a_plateau_took_from_the_rates_comes_back_with_the_next_phase(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    rates = note_rates()
    plateau = Plateau("loss", factor=0.5, patience=0, min_delta=100.0)
    train(model, groups, [Phase(epochs=3, reduce_on_plateau=plateau), Phase(epochs=1)], rows, callbacks=[rates])
    assert rates.of("stem") == rates.of("head")
    assert rates.of("head")[::3] == pytest.approx([0.1, 0.1, 0.05, 0.1])


def test_a_plateau_is_reduce_lr_on_plateau_of_keras_with_the_same_settings():
    _, callback = plateau_callbacks(Plateau("loss", factor=0.3, patience=4, min_delta=0.2, mode="min", cooldown=5))
    assert isinstance(callback, keras.callbacks.ReduceLROnPlateau)
    assert (callback.monitor, callback.factor, callback.patience) == ("loss", 0.3, 4)
    assert (callback.min_delta, callback.mode, callback.cooldown) == (0.2, "min", 5)


def test_a_plateau_waits_after_a_reduction_as_long_as_it_says():
    (_, lowers) = plateau_callbacks(Plateau(cooldown=3))
    assert lowers.cooldown == 3


def test_a_plateau_lowers_the_rates_without_printing(tiny, rows, capsys, prepared, train):
    model = tiny()
    groups = prepared(model)
    train(model, groups, [Phase(epochs=3, reduce_on_plateau=Plateau("loss", patience=0, min_delta=100.0))], rows)
    assert model.optimizer.learning_rates["head"] == pytest.approx(0.1 * 0.1 * 0.1)
    assert capsys.readouterr().out == ""


def test_no_rate_is_lowered_unless_a_phase_asks_for_it():
    assert plateau_callbacks(None) == []


def test_a_plateau_has_the_defaults_of_keras():
    (_, lowers), keras_lowers = plateau_callbacks(Plateau()), keras.callbacks.ReduceLROnPlateau()
    for name in ("monitor", "factor", "patience", "min_delta", "mode", "cooldown"):
        assert getattr(lowers, name) == getattr(keras_lowers, name), name
