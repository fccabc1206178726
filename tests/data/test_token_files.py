"""Token ids in files: whole or not there, and read without being in memory."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.token_files import keep_tokens, kept_tokens
from finetune.errors import DataError


def parts(types=0):
    for start in (0, 3):
        lengths = np.array([1, 2], np.int64)
        ids = np.arange(start, start + 3, dtype=np.int32)
        yield ids, np.full(3, types, np.int32), lengths, np.array([True, False])


def test_what_was_kept_is_read(tmp_path):
    keep_tokens(tmp_path / "new" / "folder", "key", parts())
    ids, types, lengths, cut, highest = kept_tokens(tmp_path / "new" / "folder", "key")
    assert ids.take(tf.range(6, dtype=tf.int64)).numpy().tolist() == list(range(6))
    assert (types, lengths.tolist(), cut, highest) == (None, [1, 2, 1, 2], 2, 5)


def test_types_are_kept_where_there_are_some(tmp_path):
    keep_tokens(tmp_path, "key", parts(types=1))
    assert kept_tokens(tmp_path, "key")[1].take(tf.constant([0, 5], tf.int64)).numpy().tolist() == [1, 1]


def test_another_key_is_not_there(tmp_path):
    keep_tokens(tmp_path, "key", parts())
    assert kept_tokens(tmp_path, "other") is None


@pytest.mark.parametrize("ending", [".ids", ".npy", ".json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "other"])
def test_damaged_files_are_as_if_they_were_not_there(tmp_path, ending, harm):
    keep_tokens(tmp_path, "key", parts())
    file = tmp_path / f"key{ending}"
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-1], "gone": b"", "other": content[:-1] + b"?"}[harm])
    if harm == "gone":
        file.unlink()
    assert kept_tokens(tmp_path, "key") is None


def test_files_of_another_form_are_not_read(tmp_path):
    keep_tokens(tmp_path, "key", parts())
    manifest = json.loads((tmp_path / "key.json").read_text())
    (tmp_path / "key.json").write_text(json.dumps(manifest | {"form": 99}))
    assert kept_tokens(tmp_path, "key") is None


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    def interrupted():
        yield next(parts())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_tokens(tmp_path, "key", interrupted())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"`.*file` cannot be written to: .*\. Name another folder, or remove `cache`\."
    ):
        keep_tokens(tmp_path / "file", "key", parts())
