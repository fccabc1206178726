import signal
from pathlib import Path

import keras
import numpy as np
import pytest

from finetune.errors import DataError, TrainingError
from finetune.interruption import Stopped
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.finished_steps import finished_steps_kept
from finetune.training.finite_weights import FiniteWeights

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


@pytest.fixture
def broken_off(model, tmp_path, monkeypatch):
    """Trains 2 epochs of 4 steps until an error in step 2 of epoch 2; returns the error that the caller gets."""
    monkeypatch.chdir(tmp_path)

    def train(error, *, with_checkpoint=False):
        weights = LastWeights(Path("out/checkpoints/last.weights.h5"))
        checkpoint = Checkpoint("out/checkpoints") if with_checkpoint else None
        finite = FiniteWeights()

        def fail(batch, logs):
            if batch == 1 and weights._epoch == 1:
                finite.failed = str(error) == "a weight is NaN."
                raise error

        failing = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
        callbacks = [finite, weights, *([checkpoint] if checkpoint else []), failing]
        with pytest.raises(BaseException) as caught, finished_steps_kept(weights, checkpoint, None, finite):  # noqa: PT011 - each test looks at it
            model.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        return caught.value

    return train


def test_any_error_is_told_in_a_line_with_what_is_kept(broken_off, model):
    error = broken_off(RuntimeError("no luck"))
    assert type(error) is TrainingError
    assert str(error) == (
        "Training stopped with an error. RuntimeError: no luck. The weights after epoch 1 and 2 of 4 steps of epoch 2 are "
        "in `out/checkpoints/last.weights.h5`. The option `--debug` shows where. What was written so far is in `out`."
    )
    expected = model.get_weights()
    model.load_weights("out/checkpoints/last.weights.h5")
    assert all(map(np.array_equal, expected, model.get_weights()))


def test_an_error_of_ours_stays_of_its_kind(broken_off):
    error = broken_off(DataError("Rows have names."))
    assert type(error) is DataError
    assert str(error).startswith("Rows have names. The weights after epoch 1 and 2 of 4 steps of epoch 2 are in ")


def test_where_a_weight_is_no_number_those_of_the_epoch_before_stay(broken_off):
    assert str(broken_off(TrainingError("a weight is NaN."))) == (
        "a weight is NaN. The weights after epoch 1 are in `out/checkpoints/last.weights.h5`."
    )


def test_a_signal_lets_the_run_be_resumed_where_there_are_checkpoints(broken_off):
    where = "The weights after epoch 1 and 2 of 4 steps of epoch 2 are in `out/checkpoints/last.weights.h5`."
    assert broken_off(Stopped(signal.SIGTERM)).kept == where
    stop = broken_off(Stopped(signal.SIGTERM), with_checkpoint=True)
    assert stop.kept == f"{where} `finetune resume out` goes on from there."
    assert (Checkpoint("out/checkpoints").position.epoch, Checkpoint("out/checkpoints").position.step) == (1, 2)
