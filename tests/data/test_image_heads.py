import os

import numpy as np
import pytest
from PIL import Image

from finetune.data import image_heads
from finetune.data.image_heads import PILLOW, SHRINKS, head_of, heads_of
from finetune.data.images import image_rows
from finetune.errors import DataError


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Five files of images, as many as are kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_heads, "KEPT_FROM", 5)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGBA" if number == 2 else "RGB", (8 * (number + 1), 8)).save(path)
    return paths


@pytest.fixture
def opened(monkeypatch):
    """Counts the files whose heads are read."""
    names = []
    monkeypatch.setattr(image_heads, "head_of", lambda path, *how: names.append(path.name) or head_of(path, *how))
    return names


def test_the_heads_of_many_files_are_read_once_and_again_when_a_file_has_changed(images, opened):
    first = image_rows(images, size=(8, 8)).take(np.arange(5))
    assert sorted(opened) == [f"{number}.png" for number in range(5)]
    np.testing.assert_array_equal(image_rows(images, size=(8, 8)).take(np.arange(5)), first)
    assert len(opened) == 5
    os.utime(images[1], (0, 0))
    image_rows(images, size=(8, 8))
    assert len(opened) == 10
    image_rows(images, size=(8, 9))
    assert len(opened) == 15
    image_rows(images[:4], size=(8, 8))
    image_rows(images[:4], size=(8, 8))
    assert len(opened) == 23, "of fewer files they are not kept"


def test_a_kept_file_that_is_no_list_of_heads_is_not_used(images, opened, tmp_path):
    image_rows(images, size=(8, 8))
    [kept] = (tmp_path / "cache/finetune/images").iterdir()
    content = kept.read_bytes()
    assert list(content) == [1, 1, PILLOW + SHRINKS, 1 + SHRINKS, 1 + SHRINKS]
    for damaged in (content[:-1], content[:-1] + b"\x07"):
        kept.write_bytes(damaged)
        opened.clear()
        image_rows(images, size=(8, 8))
        assert len(opened) == 5
        assert kept.read_bytes() == content


def test_files_that_are_no_images_are_named_each_time_and_nothing_is_kept(images, opened, tmp_path):
    images[3].write_text("text")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 5 are not: `.*3\.png` \(not an image\)\. Replace or remove them"):
            image_rows(images, size=(8, 8))
    assert len(opened) == 10
    images[4].unlink()
    with pytest.raises(DataError, match=r"2 of 5 are not: .*`.*4\.png` \(.*No such file or directory"):
        image_rows(images, size=(8, 8))
    assert not (tmp_path / "cache").exists()


def test_the_oldest_sets_are_removed_and_a_place_that_cannot_be_written_is_no_error(images, monkeypatch, tmp_path):
    monkeypatch.setattr(image_heads, "_MOST_KEPT", 2)
    keys = ["a", "b", "c"]
    for number, key in enumerate(keys):
        heads_of(images, (8, 8), "pad", key=key, checked=True, places=())
        os.utime(tmp_path / f"cache/finetune/images/{key}-1", (number, number))
    heads_of(images, (8, 8), "pad", key="b", checked=True, places=())  # used again
    heads_of(images, (8, 8), "pad", key="d", checked=True, places=())
    assert sorted(path.name for path in (tmp_path / "cache/finetune/images").iterdir()) == ["b-1", "d-1"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(heads_of(images, (8, 8), "pad", key="e", checked=True, places=())) == 5
