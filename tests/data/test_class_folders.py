"""Files lie in a folder for each class, or in such folders for each split."""

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
    assert [(file.label, file.path.name, file.split) for file in files] == [
        ("cat", "c.wav", ""),
        ("dog", "b.wav", ""),
        ("dog", "a.WAV", ""),
    ]


def test_folders_of_splits_hold_folders_of_classes(made):
    files = made("train/dog/a.wav", "test/dog/b.wav")
    assert {(file.split, file.path.name) for file in files} == {("train", "a.wav"), ("test", "b.wav")}


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
