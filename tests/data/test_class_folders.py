"""Files lie in a folder for each class, or in such folders for each split."""

import numpy as np
import pytest

from finetune.data.class_folders import find_files
from finetune.errors import DataError


@pytest.fixture
def made(tmp_path):
    """Makes empty files, and lists those of sounds."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return find_files(tmp_path, (".wav",), "WAV files", "dog")

    return make


def test_the_class_is_the_folder_and_the_split_the_one_above(made):
    files = made("dog/b.wav", "dog/deep/a.WAV", "cat/c.wav", "cat/.hidden.wav", "cat/notes.txt")
    assert files.labels.tolist() == ["cat", "dog", "dog"]
    assert list(files.paths.names) == ["cat/c.wav", "dog/b.wav", "dog/deep/a.WAV"]
    assert files.splits.tolist() == ["", "", ""]


def test_folders_of_splits_hold_folders_of_classes(made):
    files = made("train/dog/a.wav", "test/dog/b.wav")
    assert list(zip(files.splits.tolist(), files.paths.names, strict=True)) == [
        ("test", "test/dog/b.wav"),
        ("train", "train/dog/a.wav"),
    ]


def test_folders_of_splits_may_be_called_as_others_do_and_what_becomes_a_test_is_said(made):
    files = made("train/dog/a.wav", "val/dog/b.wav")
    assert files.splits.tolist() == ["train", "test"]
    [said] = files.warnings((".wav",))
    assert said.startswith("`val` is all there is beside `train`: its rows test. Where")
    files = made("test/dog/c.wav")
    assert files.splits.tolist() == ["test", "train", "validation"]
    assert files.warnings((".wav",)) == []


def test_files_are_sorted_by_folders_first(made):
    assert list(made("dog/a/b.wav", "dog/a.wav", "dog/a-1.wav", "dog/B.wav").paths.names) == [
        "dog/B.wav",
        "dog/a/b.wav",
        "dog/a-1.wav",
        "dog/a.wav",
    ]


def test_files_that_are_left_out_for_their_ending_are_counted(made):
    files = made("dog/a.wav", "dog/b.mp3", "cat/c.wav", "cat/deep/d.mp3", "cat/LICENSE", "cat/.hidden.mp3")
    assert files.warnings((".wav", ".wave")) == [
        "3 files in the folders of classes are left out: 2 `.mp3`, 1 without an ending. Those that end in .wav, .wave "
        "are read"
    ]
    assert files.select(np.arange(1)).others == files.others


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.wav"], "Wav files lie in a folder for each class, such as `{folder}/dog`. `{folder}` holds no folders, and 1 WAV files."),
        (["dog/a.mp3"], "Every folder of a class must hold WAV files (.wav). `dog` in `{folder}` hold none."),
        (["train/dog/a.wav", "tets/dog/a.wav"], "`{folder}` also holds `tets`. Did you mean `test`?"),
    ],
)  # fmt: skip
def test_other_folders_are_refused(made, tmp_path, names, said):
    with pytest.raises(DataError) as caught:
        made(*names)
    assert said.format(folder=tmp_path) in str(caught.value)
