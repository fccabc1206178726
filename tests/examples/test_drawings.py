"""Drawings from a font: with the font of matplotlib, which has some of the characters, in black."""

import matplotlib
import numpy as np
from PIL import Image

from finetune.examples.drawings import CLASSES, SIZE, write_drawings


def test_each_character_of_a_class_becomes_an_image_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSES, "letter", [(65, 66), (0x42D, 0x42D)])
    for name in [name for name in CLASSES if name != "letter"]:
        monkeypatch.delitem(CLASSES, name)
    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    write_drawings(font, tmp_path)
    files = sorted((tmp_path / "letter").iterdir())
    assert [file.name for file in files] == ["41.png", "42.png", "42D.png"]
    images = [np.asarray(Image.open(file)) for file in files]
    assert {image.shape for image in images} == {(SIZE, SIZE, 3)}
    assert all(0.02 < (image < 128).mean() < 0.5 for image in images)
    assert not np.array_equal(images[0], images[1])


def test_no_character_is_in_two_classes():
    codes = [code for ranges in CLASSES.values() for first, last in ranges for code in range(first, last + 1)]
    assert len(codes) == len(set(codes)) > 300
