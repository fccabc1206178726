import zipfile
import zlib

import pytest

from finetune.files.zip_archives import zip_archive

FLAGS, METHOD, VERSION = 6, 8, 4  # bytes of them in the header of a file, two each; 2 further in the list at the end


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", "a text that is long enough to be packed, packed, packed")
    return path


def changed(archive, place, value):
    """Writes two bytes of the header of the file and of its entry in the list."""
    data = bytearray(archive.read_bytes())
    for start, further in ((0, 0), (data.index(b"PK\x01\x02"), 2)):
        data[start + place + further : start + place + further + 2] = value
    archive.write_bytes(data)


def read(archive):
    with zip_archive(archive) as file:
        return file.read("a.txt")


def test_files_are_read(archive):
    assert read(archive).startswith(b"a text")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (FLAGS, b"\x20\0", "compressed patched data"),
        (FLAGS, b"\x40\0", "strong encryption"),
        (FLAGS, b"\1\0", "is encrypted, password required"),
        (METHOD, b"\x63\0", "compression method is not supported"),
        (METHOD, b"\x0c\0", "Invalid data stream"),  # bzip2, which it is not
        (METHOD, b"\x0e\0", "."),  # LZMA
        (VERSION, b"\xff\0", "zip file version 25.5"),
    ],
)
def test_whatever_is_wrong_is_a_damaged_archive(archive, place, value, said):
    changed(archive, place, value)
    with pytest.raises((zipfile.BadZipFile, OSError), match=said):
        read(archive)


def test_bytes_that_do_not_unpack_are_damage(archive):
    data = bytearray(archive.read_bytes())
    data[40:50] = b"\xff" * 10
    archive.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="Error -3 while decompressing"):
        read(archive)


@pytest.mark.parametrize("error", [RecursionError("deep"), ValueError("of the caller"), KeyError("name")])
def test_errors_of_the_caller_are_his_own(archive, error):
    with pytest.raises(type(error)), zip_archive(archive):
        raise error


def test_damage_that_the_caller_meets_in_a_stream_counts(archive):
    with pytest.raises(zipfile.BadZipFile), zip_archive(archive):
        raise zlib.error("Error -3")
