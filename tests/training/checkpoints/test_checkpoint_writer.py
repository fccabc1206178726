"""Large checkpoints are written in a thread; who asks for them waits, and what goes wrong is told to who trains."""

import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune.training.checkpoints.checkpoint_file import Saved, checkpoint_files
from finetune.training.checkpoints.checkpoint_writer import CheckpointWriter

SMALL, LARGE = (Saved({"a": np.arange(count, dtype=np.float32)}, {"b": count}) for count in (10, 10 * 2**20))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def is_large(path):
    """Whether a file holds `LARGE`, as other programs read it."""
    return load_file(path)["a"].tobytes() == LARGE.arrays["a"].tobytes()


def test_a_small_file_is_there_at_once_and_a_large_one_after_waiting(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.write(SMALL, steps=1)
    assert not threads()
    assert writer.result().path == checkpoint_files(tmp_path)[0]
    writer.write(LARGE, steps=2)
    assert threads()
    writer.wait()
    assert not threads()
    written = writer.result()
    assert (written.path, written.error) == (checkpoint_files(tmp_path)[0], "")
    assert writer.result() is None  # said once
    assert is_large(written.path)


def test_another_writer_of_the_folder_waits_for_what_is_being_written(tmp_path):
    CheckpointWriter(tmp_path, keep=2).write(LARGE, steps=3)
    CheckpointWriter(tmp_path, keep=2)
    assert is_large(*checkpoint_files(tmp_path))


def test_each_file_is_written_before_the_next_and_old_ones_are_removed(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.in_background = 0
    for steps in range(3):
        writer.write(Saved(SMALL.arrays, {"steps": steps}), steps=steps)
    writer.wait()
    assert [path.name[:12] for path in checkpoint_files(tmp_path)] == ["step-0000002"]


@pytest.mark.parametrize("background", [0, 2**40])
def test_a_file_that_cannot_be_written_is_a_sentence(background, tmp_path):
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(tmp_path / "file", keep=2)
    writer.in_background = background
    writer.write(SMALL, steps=1)
    writer.wait()
    written = writer.result()
    assert written.path is None
    assert "could not be written" in written.error


@pytest.mark.parametrize("background", [0, 2**40])
def test_any_other_error_is_raised_where_the_result_is_asked_for(background, tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.in_background = background
    writer.write(Saved({}, {"no JSON": {1, 2}}), steps=1)
    writer.wait()
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.result()
