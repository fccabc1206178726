"""A sheet of images: each in its place, with the brightness that the network sees."""

import numpy as np
from PIL import Image

from finetune.results.contact_sheet import write_contact_sheet


def test_images_lie_in_rows_and_white_is_the_greatest_value_of_all(tmp_path):
    images = [np.full((4, 8, 3), value, np.float32) for value in (0, 1, 2)]
    write_contact_sheet(images, ["a", "b", "c"], tmp_path / "sheet.png", columns=2, side=40)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 62 + 8, 2 * 48 + 8, 3)
    assert [sheet[18, 20].tolist(), sheet[18, 68].tolist(), sheet[80, 20].tolist()] == [[0] * 3, [128] * 3, [255] * 3]
    assert (sheet[80, 68] == 255).all()  # no fourth image


def test_grey_images_and_images_of_one_value_are_drawn(tmp_path):
    write_contact_sheet([np.full((5, 5, 1), 3.0)], ["a long label of a class"], tmp_path / "sheet.png", side=20)
    assert (np.asarray(Image.open(tmp_path / "sheet.png"))[10, 10] == 0).all()
