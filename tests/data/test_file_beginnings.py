import io

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import feather, parquet

from finetune.data.file_beginnings import BYTES, begins_as


def image(kind):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def table(write):
    file = io.BytesIO()
    write(pyarrow.table({"a": [1]}), file)
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *((image(kind), f"a {kind} image") for kind in ("PNG", "JPEG", "GIF")),
        (image("WEBP"), "a WebP image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV sound"),
        (table(parquet.write_table), "a Parquet file"),
        (table(feather.write_feather), "a Feather file"),
        (array(), "an array of NumPy (`.npy`)"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "empty"),
        *((text, "") for text in (b"RIFF,ID3,GIF\n1,2,3\n", b"ID3,PK\n", b"PK,x\n", b"text\n")),
    ],
)
def test_files_are_known_by_their_first_bytes_and_texts_are_not_mistaken(content, kind):
    assert begins_as(content[:BYTES]) == kind
