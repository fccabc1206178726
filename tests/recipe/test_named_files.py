"""Files that are not there are told with their place and what is."""

import os

import pytest

from finetune.recipe.loader import load_recipe
from finetune.recipe.named_files import files_of, missing_files
from finetune.recipe.text import dump


@pytest.fixture
def missing(tmp_path, valid):
    """Writes the valid recipe with other parts, and returns what is missing."""
    for name in ("digits.npz", "weights.h5", "net.keras"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "photos").mkdir()

    def sentences(**parts):
        (tmp_path / "r.yaml").write_text(dump({**valid, **parts}))
        return [sentence.replace(str(tmp_path), "HERE") for sentence in missing_files(load_recipe(tmp_path / "r.yaml"))]

    return sentences


def test_files_that_are_there_are_not_told(missing):
    assert missing() == []
    assert missing(model={"keras_file": "net.keras"}, data={"images": "photos"}) == []


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"data": {"npz": "digit.npz"}}, "`data.npz` does not exist: `HERE/digit.npz`. Did you mean `digits.npz`?"),
        ({"data": {"npz": "a/b/c.npz"}}, "`data.npz` does not exist: `HERE/a/b/c.npz`. The nearest folder that exists is `HERE`."),
        ({"data": {"table": ["digits.npz", "x-*.csv", "digit.csv"], "inputs": "a", "target": "b"}}, "`data.table` does not exist: `HERE/digit.csv`. `HERE` holds"),
        ({"data": {"npz": "photos"}}, "`data.npz` names a file. `HERE/photos` is a folder that is empty."),
        ({"data": {"images": "net.keras"}}, "`data.images` names a folder. `HERE/net.keras` is a file."),
        ({"model": {"keras_file": "photos/x.keras"}}, "`model.keras_file` does not exist: `HERE/photos/x.keras`. `HERE/photos` is empty."),
        ({"restore": {"from": "weight.h5"}}, "`restore.from` does not exist: `HERE/weight.h5`. Did you mean `weights.h5`?"),
        ({"restore": {"from": "weights.h5", "verify": "v.npz"}}, "`restore.verify` does not exist: `HERE/v.npz`."),
        ({"model": {"hub": "./nothing"}}, "`model.hub` does not exist: `HERE/nothing`."),
        ({"data": {"npz": "x.npz"}}, "`data.npz` does not exist: `HERE/x.npz`. `HERE` holds `digits.npz`, "),
        ({"data": {"npz": "a/digits.npz"}}, "`data.npz` does not exist: `HERE/a/digits.npz`. The nearest folder that exists is `HERE`. There is `HERE/digits.npz`, if it was moved: `--set data.npz=HERE/digits.npz`."),
        ({"data": {"npz": r"C:\Users\me\digits.npz"}}, "`data.npz` does not exist: `HERE/C:\\Users\\me\\digits.npz`. Folders are written with `/`."),
        ({"data": {"npz": "a" * 300}}, "`data.npz` "),
    ],
)  # fmt: skip
def test_a_path_without_a_file_is_told_with_what_is_there(missing, parts, told):
    (sentence,) = missing(**parts)
    place, _, text = sentence.partition(": ")
    assert place.startswith("HERE/r.yaml:")
    assert text.startswith(told)


def test_handles_patterns_and_prefixes_of_checkpoints_are_no_missing_files(missing, tmp_path):
    (tmp_path / "ckpt-1.index").write_bytes(b"x")
    assert missing(restore={"from": "ckpt-1"}) == []
    assert missing(model={"preset": "bert_tiny"}) == missing(model={"hub": "https://a.b/c"}) == []
    assert missing(model={"hub": "google/bert/1"}) == []
    assert missing(data={"npz": "part-*.npz"}) == []


def test_a_checkpoint_by_another_prefix_is_told_which_there_are(missing, tmp_path):
    for step in (90, 1000):
        (tmp_path / f"model.ckpt-{step}.index").write_bytes(b"x")
    (told,) = missing(restore={"from": "model.ckpt"})
    assert told.endswith("The names of the checkpoints there end in their steps: `model.ckpt-1000`, `model.ckpt-90`.")
    assert "Did you mean `model.ckpt-1000`" in missing(restore={"from": "model.ckpt-100"})[0]


def test_a_checkpoint_without_its_index_is_told_what_to_copy(missing, tmp_path):
    (tmp_path / "model.ckpt-1.data-00000-of-00001").write_bytes(b"x")
    (told,) = missing(restore={"from": "model.ckpt-1"})
    assert "`restore.from` names no complete checkpoint: `HERE/model.ckpt-1`. A checkpoint needs its index and" in told


def test_a_pipe_is_not_read_and_a_broken_link_is_told(missing, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "link.npz").symlink_to(tmp_path / "gone")
    assert "`HERE/pipe.npz` is a pipe, a socket or a device." in missing(data={"npz": "pipe.npz"})[0]
    assert "`HERE/link.npz` is a link to nothing." in missing(data={"npz": "link.npz"})[0]
    assert "is a pipe, a socket or a device." in missing(restore={"from": "/dev/zero"})[0]


def test_the_files_that_a_recipe_names_are_those_of_folders_patterns_and_prefixes_too(valid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a name is no path, whatever file is here
    names = (
        "net.keras",
        "photos/cat/1.png",
        "a-1.tfrecord",
        "a-2.tfrecord",
        "b.tfrecord",
        "w.index",
        "w.data-0",
        "cached/x",
        "bert_tiny.txt",
    )
    for name in (*names, "other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def files(**parts):
        (tmp_path / "r.yaml").write_text(
            dump({**valid, "model": {"keras_file": "net.keras"}, "restore": None, **parts})
        )
        return sorted(str(path.relative_to(tmp_path)) for path in files_of(load_recipe(tmp_path / "r.yaml")))

    tokens = {"file": "other", "length": 4, "cache": "cached"}
    table = {"table": "a.csv", "inputs": "text", "target": "label", "tokenizer": tokens}
    assert files(data=table) == ["net.keras", "other"]
    assert files(data={"images": "photos"}, restore={"from": "w"}) == [
        "net.keras",
        "photos/cat/1.png",
        "w.data-0",
        "w.index",
    ]
    records = {
        "tfrecord": {"train": "a-*.tfrecord", "test": ["b.tfrecord"]},
        "features": {"x": "float32", "y": "int64"},
        "inputs": "x",
        "target": "y",
    }
    assert files(data=records) == ["a-1.tfrecord", "a-2.tfrecord", "b.tfrecord", "net.keras"]
    assert files(model={"preset": "bert_tiny"}, data={"images": "photos"}) == ["photos/cat/1.png"]
