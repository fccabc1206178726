"""TFRecord files by index: where each record begins is read once from the lengths in front of them.

A record is `length (8 bytes), checksum of it (4), data, checksum of the data (4)`, so an index needs no reading of
data. TensorFlow reads a record at its place, and checks both sums.
"""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune import keras_private
from finetune.errors import DataError, quote
from finetune.machine_failures import raise_machine_failure

_LENGTH = struct.Struct("<Q")
_AROUND = 16  # bytes of a record that are not data
_COMPRESSED = {b"\x1f\x8b": "GZIP", b"\x78\x01": "ZLIB", b"\x78\x9c": "ZLIB", b"\x78\xda": "ZLIB"}


@dataclass(frozen=True, eq=False)
class Records:
    """The records of some files, one file after another.

    Attributes:
        paths: The files.
        file_of: Number of the file of each record.
        offsets: Where each record begins in its file.
        numbers: Number of each record in its file, from 0.
    """

    paths: Sequence[Path]
    file_of: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> bytes:
        """Returns the data of a record.

        Raises:
            DataError: A checksum is wrong, or the file has changed.
        """
        path = self.paths[int(self.file_of[index])]
        try:
            return keras_private.read_record(str(path), int(self.offsets[index]))
        except Exception as error:  # TensorFlow's errors, of several classes
            raise_machine_failure(error, f"Reading `{self.place(index)}`")
            raise DataError(f"`{self.place(index)}` is damaged, or the file has changed.") from error

    def place(self, index: int) -> str:
        """Returns the file and the number of a record in it, counted from 0, such as `train-0.tfrecord:17`."""
        return f"{self.paths[int(self.file_of[index])].name}:{int(self.numbers[index])}"


def read_index(paths: Sequence[Path]) -> Records:
    """Reads where the records of some files begin.

    Raises:
        DataError: A file is compressed, cut short, or holds no records.
    """
    offsets = [_offsets(path) for path in paths]
    if not sum(map(len, offsets)):
        raise DataError(f"Files of records need records. {quote(path.name for path in paths)} hold none.")
    file_of = np.repeat(np.arange(len(paths)), [len(each) for each in offsets])
    numbers = np.concatenate([np.arange(len(each)) for each in offsets])
    return Records(list(paths), file_of, np.concatenate(offsets), numbers)


def _offsets(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if not size:
        return np.zeros(0, np.int64)
    offsets, offset = [], 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:2] in _COMPRESSED and not _is_record(path, 0):
            raise DataError(
                f"Records are read by their places, which compression hides. `{path}` is compressed by "
                f"{_COMPRESSED[data[:2]]}. Write it without: `tf.io.TFRecordWriter(path)`; or `gunzip` it."
            )
        while offset < size:
            end = offset + _AROUND + (_LENGTH.unpack_from(data, offset)[0] if offset + 8 <= size else size)
            if end > size:
                break
            offsets.append(offset)
            offset = end
    if offset != size:  # a file that is cut short; or a damaged length, which leads astray
        damaged = next((number for number, each in enumerate(offsets) if not _is_record(path, each)), len(offsets))
        said = (
            f"record {damaged} is damaged or cut short"
            if damaged
            else "it is no file of records, or damaged at record 0"
        )
        raise DataError(f"Files of records are written by `tf.io.TFRecordWriter`. `{path}`: {said}. Write it again.")
    return np.array(offsets, np.int64)


def _is_record(path: Path, offset: int) -> bool:
    try:
        keras_private.read_record(str(path), offset)
    except Exception as error:  # TensorFlow's errors, of several classes: the answer to what is asked
        raise_machine_failure(error, f"Reading `{path}`")
        return False
    return True
