"""What a file is by its first bytes, for messages about files of another kind than is read.

Only beginnings that a text does not have by chance are listed.
"""

BYTES = 16  # that are enough to say it

_BEGINNINGS = {
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF87a": "a GIF image",
    b"GIF89a": "a GIF image",
    b"OggS\0": "an Ogg sound",
    b"fLaC\0": "a FLAC sound",
    b"ID3\2": "an MP3 sound",
    b"ID3\3": "an MP3 sound",
    b"ID3\4": "an MP3 sound",
    b"\x93NUMPY": "an array of NumPy (`.npy`)",
    b"PK\x03\x04": "a ZIP archive, such as an `.npz` or a file of Excel",
    b"\x1f\x8b": "a file compressed by gzip",
    b"\x89HDF\r\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "a Feather file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF-": "a PDF document",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
_RIFF = {b"WAVE": "a WAV sound", b"WEBP": "a WebP image"}


def begins_as(head: bytes) -> str:
    """Returns what a file is, such as `a PNG image`; empty text where that is not known.

    Args:
        head: Its first bytes; `BYTES` are enough.
    """
    if not head:
        return "empty"
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "")
    return next((kind for magic, kind in _BEGINNINGS.items() if head.lower().startswith(magic.lower())), "")
