import json

import ml_dtypes
import numpy as np
import pytest

from finetune.errors import WriteError
from finetune.training.checkpoints.checkpoint_file import (
    Saved,
    checkpoint_files,
    copy_checkpoint,
    prune,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from finetune.training.checkpoints.model_state import _packed
from finetune.training.snapshot import random_state

RANDOM = random_state()
SOUND = {
    "position": {"epoch": 0, "step": 0, "ended": False, "stopped": False},
    "model": {
        "paths": {"metrics": [], "model": [], "optimizer": []},
        "optimizer": None,
        "random": json.loads(json.dumps(_packed(RANDOM))),
    },
    "callbacks": {},
    "history": {"epoch": [], "history": {}},
    "more": {},
}
ARRAYS = {
    "matrix": np.arange(6, dtype="float32").reshape(2, 3),
    "scalar": np.array(7, "int64"),
    "empty": np.zeros((0, 3), "float64"),
    "none of NumPy's": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
    "with / and Ü": np.array([2**32 - 1], "uint32"),
}


def test_what_is_read_is_what_was_written(tmp_path):
    document = SOUND | {"more": {"a": [1, None, 0.1], "b": {"c": "Ü"}}}
    path = write_checkpoint(tmp_path / "deep" / "folder", Saved(ARRAYS, document), steps=12)
    assert path.name.startswith("step-0000012-00001-")
    saved = read_checkpoint(path)
    assert saved.document == document
    assert {name: (array.dtype, array.shape, array.tobytes()) for name, array in saved.arrays.items()} == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in ARRAYS.items()
    }


def test_every_changed_bit_is_noticed(tmp_path):
    path = write_checkpoint(tmp_path, Saved({"a": np.arange(4)}, SOUND), steps=0)
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 13):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="its content is not what was written"):
            read_checkpoint(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="its content is not what was written"):
        read_checkpoint(path)
    path.write_bytes(content)
    assert read_checkpoint(path).document == SOUND


def test_a_damaged_newest_file_gives_way_to_the_one_before(tmp_path):
    first = write_checkpoint(tmp_path, Saved({"a": np.array(1)}, SOUND), steps=5)
    second = write_checkpoint(tmp_path, Saved({"a": np.array(2)}, SOUND), steps=9)
    assert read_newest(tmp_path)[::2] == (second, {})
    second.write_bytes(second.read_bytes()[:-3] + b"abc")
    path, saved, damaged = read_newest(tmp_path)
    assert (path, damaged) == (first, {second: "its content is not what was written"})
    assert saved is not None
    assert saved.arrays["a"] == 1


def test_the_newest_file_is_the_one_written_last_whatever_its_steps(tmp_path):
    write_checkpoint(tmp_path, Saved({}, SOUND), steps=9)
    last = write_checkpoint(tmp_path, Saved({}, SOUND), steps=5)
    assert checkpoint_files(tmp_path)[0] == last


def test_old_files_and_halves_of_files_are_removed_and_others_stay(tmp_path):
    paths = [write_checkpoint(tmp_path, Saved({}, SOUND), steps=step) for step in range(4)]
    (tmp_path / ".writing-step-0000009-00009-0000000000000000.safetensors").write_bytes(b"half")
    (tmp_path / "last.weights.h5").write_bytes(b"weights")
    prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {paths[2].name, paths[3].name, "last.weights.h5"}
    prune(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["last.weights.h5"]


def test_a_folder_that_is_missing_has_no_checkpoint(tmp_path):
    assert read_newest(tmp_path / "missing") == (None, None, {})


def test_a_file_that_cannot_be_written_leaves_the_former(tmp_path):
    first = write_checkpoint(tmp_path, Saved({}, SOUND), steps=1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="could not be written"):
        write_checkpoint(tmp_path / "file", Saved({}, SOUND), steps=2)
    assert read_newest(tmp_path)[0] == first


def test_a_checkpoint_that_is_kept_in_another_folder_stays_when_the_others_go(tmp_path):
    for steps in (3, 5):
        path = write_checkpoint(tmp_path, Saved(ARRAYS, SOUND), steps=steps)
        copy_checkpoint(path, tmp_path / "kept")
        copy_checkpoint(path, tmp_path / "kept")
    prune(tmp_path, 0)
    (kept,) = checkpoint_files(tmp_path / "kept")
    saved = read_checkpoint(kept)
    assert (kept.name, saved.document) == (path.name, SOUND)
