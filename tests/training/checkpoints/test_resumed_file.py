import shutil

import keras
import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import checkpoint_files
from finetune.training.checkpoints.resumed_file import Position, ResumedFile

X, Y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")


def made():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of the checkpoints after step 4, within epoch 2, and at its end; and the model that has written them."""
    folder, model = tmp_path_factory.mktemp("written"), made()
    patience = keras.callbacks.EarlyStopping("loss", patience=9)
    checkpoint = Checkpoint(folder, every_steps=1, callbacks=[patience])
    model.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=[patience, checkpoint])
    return folder, model


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


def test_it_is_the_newest_file_with_its_place_and_its_steps(folder):
    resumed = ResumedFile(folder)
    assert (resumed.path, resumed.steps, resumed.damaged) == (checkpoint_files(folder)[0], 8, {})
    assert resumed.position == Position(epoch=2, step=0, ended=True)
    assert resumed.phase == {"number": 1, "epoch": 0, "step": 0}
    assert (resumed.holds_slots, resumed.document) == (True, {})


def test_without_a_file_a_training_begins(tmp_path):
    resumed = ResumedFile(tmp_path)
    assert (resumed.path, resumed.saved, resumed.steps, resumed.position) == (None, None, 0, Position())
    assert resumed.holds_slots


def test_it_gives_the_weights_the_slots_and_the_history(folder, written):
    model, resumed = made(), ResumedFile(folder)
    resumed.put_into(model)
    for before, now in zip(written[1].variables, model.variables, strict=True):
        np.testing.assert_array_equal(before, now)
    for before, now in zip(written[1].optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, now)
    history = keras.callbacks.History()
    resumed.put_into_history(history)
    assert (history.epoch, history.history) == (written[1].history.epoch, written[1].history.history)


def test_it_goes_back_to_an_older_file_that_is_whole(folder):
    resumed, (_, before) = ResumedFile(folder), checkpoint_files(folder)
    assert resumed.go_back(before)
    assert (resumed.path, resumed.position) == (before, Position(epoch=1, step=4))
    before.write_bytes(before.read_bytes()[:-1])
    newest = ResumedFile(folder)
    assert not newest.go_back(before)
    assert newest.position == Position(epoch=2, ended=True)


def test_a_changed_training_goes_beyond_the_end_and_forgets_the_best_value_of_other_rows(folder):
    resumed = ResumedFile(folder)
    resumed.saved.document["callbacks"]["EarlyStopping-1"]["stopped_epoch"] = 2
    assert resumed.change(goes_beyond=True, begins_epoch=False) == []
    assert resumed.position == Position(epoch=2)
    assert resumed.saved.document["callbacks"]["EarlyStopping-1"]["stopped_epoch"] == 0
    assert resumed.change(goes_beyond=False, begins_epoch=True, forgets_best=True) == ["EarlyStopping-1"]


def test_batches_of_other_rows_begin_the_epoch_again(folder):
    resumed, (_, before) = ResumedFile(folder), checkpoint_files(folder)
    resumed.go_back(before)
    resumed.change(goes_beyond=False, begins_epoch=True)
    assert resumed.position == Position(epoch=1, step=0)


def test_a_changed_training_says_what_it_has_carried_and_any_other_does_not(folder):
    resumed, model = ResumedFile(folder), made()
    resumed.put_into(model)
    assert resumed.carried is None


def test_other_kernels_are_refused_unless_the_training_is_changed(folder):
    resumed = ResumedFile(folder)
    resumed.check_kernels("exact")
    with pytest.raises(TrainingError, match="is of one with `kernels: exact`, and it goes on with `kernels: native`"):
        resumed.check_kernels("native")
    resumed.change(goes_beyond=False, begins_epoch=False)
    resumed.check_kernels("native")
