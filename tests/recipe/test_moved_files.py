"""Files in another place are told from files with another content."""

import shutil

import pytest
import yaml

from finetune.recipe import moved_files
from finetune.recipe.changes import changes_of_text
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.moved_files import contents, moved_keys, with_paths_of
from finetune.recipe.text import dump


@pytest.fixture
def recipes(tmp_path, valid):
    """Makes a recipe of `data`, in the folder `old` or a copy of it."""

    def of(folder, data):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "r.yaml").write_text(dump({**valid, "restore": None, "data": data}))
        return load_recipe(tmp_path / folder / "r.yaml")

    return of


def moved(old, new, noted):
    changes = changes_of_text(*(dump_recipe(each, absolute_paths=True) for each in (old, new)))
    return moved_keys(new, changes, noted)


def test_the_same_content_in_another_place_is_moved_and_another_content_is_not(recipes, tmp_path):
    for folder, content in (("old", b"abc"), ("new", b"abc"), ("other", b"abd")):
        recipes(folder, {"npz": "rows.npz"})
        (tmp_path / folder / "rows.npz").write_bytes(content)
    old, new, other = (recipes(folder, {"npz": "rows.npz"}) for folder in ("old", "new", "other"))
    noted = contents(old)
    assert list(noted) == ["data.npz"]
    assert moved(old, new, noted) == [("data", "npz")]
    assert moved(old, other, noted) == moved(old, new, {}) == moved(old, old, noted) == []
    there = with_paths_of(old, new, [("data", "npz")])
    assert yaml.safe_load(dump_recipe(there))["data"]["npz"] == str(tmp_path / "new" / "rows.npz")


def test_names_of_several_files_and_which_rows_they_are_count(recipes, tmp_path):
    features = {"features": {"x": "float32", "y": "int64"}, "inputs": "x", "target": "y"}
    tables = [{"train": "a.tfrecord", "test": "b.tfrecord"}, {"train": "b.tfrecord", "test": "a.tfrecord"}]
    for name in ("a", "b"):
        (tmp_path / f"{name}.tfrecord").write_text(name)
    assert len({contents(recipes(".", {"tfrecord": each, **features}))["data.tfrecord"] for each in tables}) == 2
    digests = []
    for folder, label in (("old", "cat"), ("new", "cat"), ("new", "dog")):
        recipe = recipes(folder, {"images": "photos"})
        (tmp_path / folder / "photos" / label).mkdir(parents=True)
        (tmp_path / folder / "photos" / label / "1.png").write_bytes(b"x")
        digests.append(contents(recipe)["data.images"])
        shutil.rmtree(tmp_path / folder / "photos")
    assert digests[0] == digests[1] != digests[2]


def test_of_large_files_evenly_spaced_parts_are_read(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(moved_files, "_MOST_BYTES", 160)
    recipe, path = recipes("old", {"npz": "rows.npz"}), tmp_path / "old" / "rows.npz"
    digests = set()
    for place in (0, 12, 999):  # the second is between two parts
        content = bytearray(1000)
        content[place] = 1
        path.write_bytes(content)
        digests.add(contents(recipe)["data.npz"])
    path.write_bytes(bytes(1000))
    assert contents(recipe)["data.npz"] in digests
    assert len(digests) == 3
