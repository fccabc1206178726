"""Inputs of rows, as plain data."""

import base64
import gzip
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from finetune.results.report.inputs import shown_input, text_at


def pixels_of(shown):
    return np.asarray(Image.open(BytesIO(base64.b64decode(shown["picture"]))))


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (np.full((4, 4, 3), 200, np.uint8), 200),
        (np.full((4, 4, 1), 0.5, np.float32), 128),
        (np.full((4, 4, 1), 130.0, np.float32), 130),
        (np.stack([np.full((4, 4), -1.0), np.full((4, 4), 1.0), np.zeros((4, 4))], axis=-1), 0),
    ],
)
def test_an_image_becomes_a_picture_of_its_brightness(image, pixel):
    assert pixels_of(shown_input(image))[0, 0].reshape(-1)[0] == pixel


def test_a_large_image_becomes_small():
    assert max(pixels_of(shown_input(np.zeros((900, 300, 3), np.uint8))).shape) == 112


def test_an_image_with_values_that_are_no_numbers_is_drawn():
    image = np.ones((4, 4, 1), np.float32)
    image[0, 0] = np.nan
    assert pixels_of(shown_input(image)).shape == (112, 112, 3)


def test_a_text_is_cut_and_numbers_are_counted():
    assert shown_input(np.array(b"hello \xff")) == {"text": "hello \ufffd"}
    assert len(shown_input(np.array("x" * 999))["text"]) == 400
    assert shown_input(np.array([1.5, 2])) == {"values": "1.5, 2"}
    assert shown_input(np.arange(20))["values"].endswith("10, 11 ... (20 values)")


def test_a_long_row_of_numbers_is_a_curve():
    shown = shown_input(np.sin(np.arange(1000.0))[:, None])
    assert len(shown["curve"]) == 120


def test_the_line_of_a_table_is_shown_with_the_names_of_its_columns(tmp_path):
    (tmp_path / "a.csv").write_text('id;text\n1;"two\nlines"\n2;x\n')
    assert text_at("a.csv:2", str(tmp_path / "a.csv")) == "id: 1 | text: two\nlines"
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2, "b": "c"}\n')
    assert text_at(f"{tmp_path}/a.jsonl:2") == "a: 2 | b: c"
    assert text_at(f"{tmp_path}/a.jsonl:1") == "a: 1"
    with gzip.open(tmp_path / "b.tsv.gz", "wt") as file:
        file.write("a\tb\n1\t2\n")
    assert text_at(f"{tmp_path}/b.tsv.gz:2") == "a: 1 | b: 2"


def test_the_line_is_that_of_the_file_of_several_that_the_place_names(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.csv").write_text(f"x\n{number}\n")
    files = [str(tmp_path / "0" / "a.csv"), str(tmp_path / "1" / "a.csv")]
    assert [text_at(f"{number}/a.csv:2", files) for number in range(2)] == ["x: 0", "x: 1"]
    assert text_at("a.csv:2", files[1:]) == "x: 1"
    assert text_at("c.csv:2", files) == ""


def test_a_place_that_is_no_line_of_a_table_has_no_text(tmp_path):
    (tmp_path / "broken.jsonl").write_text("{")
    for place in ("", "cat/1.png", f"{tmp_path}/none.csv:3", f"{tmp_path}/broken.jsonl:1", "a.parquet:2"):
        assert text_at(place) == ""
