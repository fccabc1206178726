"""The bytes of tables in text, unpacked where they are compressed, within the limits for small files that hold much.

Nothing here needs NumPy or TensorFlow.
"""

import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.files.bounded_streams import bounded_stream
from finetune.files.size_limits import check_size

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
LINES = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".bz2", ".xz")
_AT_ONCE = 2**18  # bytes


def is_compressed(path: Path) -> bool:
    """Returns whether a file is a table in text that is compressed, by its endings, as `t.csv.gz`."""
    return path.suffix.lower() in _COMPRESSED and Path(path.stem).suffix.lower() in (*DELIMITED, *LINES)


def ending_of(path: Path) -> str:
    """Returns what a file ends in, in small letters: `.csv`, also of `t.CSV.gz`."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Opens a table in text as a binary stream of its content.

    Raises:
        DataError: While it is read: it cannot be unpacked.
        FinetuneError: While it is read: it holds far more than its size.
    """
    if not is_compressed(path):
        with path.open("rb") as file:
            yield file
        return
    with bounded_stream(path) as stream:
        yield io.BufferedReader(_Unpacked(path, stream), _AT_ONCE)


@contextmanager
def open_text(path: Path) -> Iterator[Any]:
    """Opens a table in text as a stream of characters, with the ends of lines as they are; see `open_bytes`."""
    with open_bytes(path) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def read_bytes(path: Path) -> bytes:
    """Returns the content of a table in text; see `open_bytes`."""
    with open_bytes(path) as file:
        return file.read()


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, counted while it is read."""

    def __init__(self, path: Path, stream: Any):
        self._path, self._stream, self._held = path, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(min(len(buffer), _AT_ONCE))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"A compressed table must be whole. `{self._path}` cannot be unpacked: {error}. Write it again."
            ) from error
        self._held += len(data)
        check_size(self._path, self._held)
        buffer[: len(data)] = data
        return len(data)
