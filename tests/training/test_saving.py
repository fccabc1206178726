import resource

import keras
import numpy as np
import pytest

from finetune.errors import WriteError
from finetune.training.saving import disk_need, memory_advice, save_elsewhere, save_model, save_weights

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def model(tiny, rows):
    model = tiny()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*rows, batch_size=45, verbose=0)
    return model


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_saved_weights_hold_the_optimizer_and_open_with_plain_keras(model, tiny, tmp_path):
    save_weights(model, tmp_path / "deep" / "a.weights.h5")
    again = tiny()
    again.compile("adam", "mse")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "deep" / "a.weights.h5")
    assert same(model, again)
    assert int(again.optimizer.iterations) == 2


def test_a_saved_model_opens_with_plain_keras_and_a_fresh_optimizer_and_the_model_keeps_its_own(model, tmp_path):
    optimizer = model.optimizer
    assert save_model(model, tmp_path / "a.keras") == ()
    assert model.optimizer is optimizer
    again = keras.models.load_model(tmp_path / "a.keras")
    assert (type(again.optimizer), int(again.optimizer.iterations)) == (keras.optimizers.SGD, 0)
    assert same(model, again)


@pytest.mark.parametrize(("save", "name"), [(save_weights, "a.weights.h5"), (save_model, "a.keras")])
def test_where_there_is_no_room_it_is_an_error_and_the_former_file_stays(model, tmp_path, save, name):
    path = tmp_path / name
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(WriteError, match=f"`{path}` could not be written: File too large"):
            save(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: "old"}
    save(model, path)
    assert path.stat().st_size > 2000


def test_where_the_temporary_folder_has_no_room_either_the_working_one_is_taken(model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    monkeypatch.chdir(tmp_path)
    path = save_elsewhere(model, "digits-1")
    assert (path.parent, path.name[:18], path.name[-11:]) == (tmp_path, "finetune-digits-1-", ".weights.h5")
    assert path.stat().st_mode & 0o077 == 0
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert save_elsewhere(model, "digits-1") is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_what_the_files_take_or_a_little_more(rows, tmp_path, dtype):
    layers = [keras.layers.Dense(size, dtype=keras.DTypePolicy(dtype)) for size in (300, 300, 3)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile("adam", "mse")
    before = disk_need(model, epochs=3)
    model.optimizer.build(model.trainable_variables)
    save_weights(model, tmp_path / "a.weights.h5")
    save_model(model, tmp_path / "a.keras")
    weights, whole = ((tmp_path / name).stat().st_size for name in ("a.weights.h5", "a.keras"))
    total, largest = disk_need(model, epochs=3)
    assert weights <= largest <= weights + 30_000
    assert 5 * weights + whole // 2 <= total
    assert total <= 5 * largest + 2**20
    assert abs(before[1] - largest) < 20_000
    without = disk_need(model, epochs=3, slots=False)[1]
    save_weights(model, tmp_path / "b.weights.h5", optimizer=False)
    assert (tmp_path / "b.weights.h5").stat().st_size <= without < largest / 2
    assert disk_need(model, epochs=3, more_checkpoints=1)[0] == total + largest


def test_more_memory_than_there_is_is_told(model):
    _, needed = disk_need(model, epochs=1)
    assert memory_advice(model, available=needed) == ""
    advice = memory_advice(model, available=needed // 2)
    assert advice.startswith("saving takes ")
    assert "of memory beside the model, and " in advice
    assert "may end at its first checkpoint" in advice
