"""Headers of NumPy's files: what an array says that it holds is compared with what is there, before memory is taken."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from finetune.files.size_limits import check_zip
from finetune.files.zip_archives import zip_archive


def read_npy_header(file: IO[bytes], held: int, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns the shape and type in an array's header, and checks that so many bytes follow.

    Args:
        file: The array, at its beginning.
        held: Its bytes, with the header.
        name: What messages call it.

    Raises:
        ValueError: There are more bytes, or fewer.
    """
    version = np.lib.format.read_magic(file)
    read: Callable[..., Any] = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    # Python's integers: a shape that lies may overflow those of NumPy.
    promised = math.prod(map(int, shape)) * dtype.itemsize
    if not dtype.hasobject and promised != held - file.tell():
        raise ValueError(f"`{name}` promises {promised:,} bytes and holds {held - file.tell():,}")
    return shape, dtype


def check_arrays(path: str | Path) -> None:
    """Checks the arrays in an `.npz` or `.npy` file: NumPy takes memory for what a header says, and reads then.

    Raises:
        FinetuneError: They hold far more than the file has.
        ValueError: A header promises more bytes than follow it, or fewer.
        zipfile.BadZipFile: The file is damaged.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                file.seek(0)
                read_npy_header(file, path.stat().st_size, path.name)
        return
    check_zip(path)
    with zip_archive(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    read_npy_header(file, member.file_size, member.filename)
