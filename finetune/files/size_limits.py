"""How much a file may hold in relation to its own size: one limit for zip, tar, npz and HDF5, checked before reading.

A file of a few megabytes may unpack to as many gigabytes (a decompression bomb). Weights hardly compress, so a file
that holds far more than its own size holds something else.
"""

import os
import re
import struct
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.files.zip_archives import zip_archive

VARIABLE = "FINETUNE_MAX_SIZE"
MOST_BYTES = 64 * 2**30
MOST_RATIO = 200  # bytes held for each byte of the file
ALWAYS_ALLOWED = 100 * 2**20  # bytes, at any ratio: a small text file may compress well
MOST_HEADER_BYTES = 25_000_000  # of a table of contents in JSON; that of the largest published models is a tenth
MOST_LIST_BYTES = 10_000_000  # of the list of files in a zip archive: a hundred thousand files
_LONGEST_ZIP_END = 2**16 + 22 + 20 + 56  # bytes: a comment, the end, and what points to the end of 64 bits, and that
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def allowed_bytes(file_bytes: int) -> int:
    """Returns how many bytes a file may hold when it is unpacked.

    Args:
        file_bytes: The size of the file itself.

    Raises:
        FinetuneError: The environment variable `FINETUNE_MAX_SIZE` is set to something that is no size.
    """
    setting = os.environ.get(VARIABLE, "").strip()
    if not setting:
        return min(MOST_BYTES, max(ALWAYS_ALLOWED, MOST_RATIO * file_bytes))
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?", setting.upper())
    if match is None or match[2] not in _UNITS:
        raise FinetuneError(
            f"`{VARIABLE}` is a number of bytes, with a unit or without. Received: `{setting}`. Write e.g. "
            f"`{VARIABLE}=80GB`."
        )
    return int(float(match[1]) * _UNITS[match[2]])


def check_size(path: str | Path, held: int, *, file_bytes: int | None = None) -> None:
    """Checks what a file says that it holds, before memory is taken for it.

    Args:
        path: The file.
        held: How many bytes it holds when it is unpacked.
        file_bytes: The size of the file; by default it is asked for.

    Raises:
        FinetuneError: It holds more than is allowed.
    """
    file_bytes = Path(path).stat().st_size if file_bytes is None else file_bytes
    allowed = allowed_bytes(file_bytes)
    if held > allowed:
        raise FinetuneError(
            f"A file of {file_bytes:,} bytes may hold {allowed:,} bytes, so that a small file cannot fill the memory. "
            f"`{path}` holds {held:,}. If you trust it, raise the limit with the environment variable "
            f"`{VARIABLE}={-(-held // 10**9)}GB`."
        )


def check_zip(path: str | Path) -> None:
    """Checks what all files in a zip archive (`.zip`, `.npz`, `.keras`) take together when they are unpacked.

    The archive says so in its list of files, and `zipfile` reads no more of a file than that.

    Raises:
        FinetuneError: They take more than is allowed, or the list itself does.
        zipfile.BadZipFile: The archive is damaged.
    """
    check_zip_list(path)
    with zip_archive(path) as archive:
        check_size(path, sum(member.file_size for member in archive.infolist()))


def check_zip_list(path: str | Path) -> None:
    """Checks the length of the list of files in a zip archive: `zipfile` makes an object of each of its 46 bytes.

    Raises:
        FinetuneError: The list is too long.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_ZIP_END))
        end = file.read()
    place = end.rfind(b"PK\x05\x06")
    if place < 0 or len(end) < place + 22:
        return  # `zipfile` says that it is no archive
    listed = struct.unpack_from("<I", end, place + 12)[0]
    place64 = end.rfind(b"PK\x06\x06", 0, place)
    if place64 >= 0 and place64 + 48 <= len(end):  # where numbers of 32 bits do not do
        listed = max(listed % 0xFFFFFFFF, struct.unpack_from("<Q", end, place64 + 40)[0])
    check_header(path, min(listed, size), most=MOST_LIST_BYTES)


def check_header(path: str | Path, header_bytes: int, *, most: int = MOST_HEADER_BYTES) -> None:
    """Checks the length of a table of contents, which takes many times its size in memory.

    Args:
        path: The file.
        header_bytes: How long its table of contents is.
        most: How long it may be where `FINETUNE_MAX_SIZE` does not raise that.

    Raises:
        FinetuneError: It is too long.
    """
    allowed = max(most, allowed_bytes(0) if os.environ.get(VARIABLE) else 0)
    if header_bytes > allowed:
        raise FinetuneError(
            f"A table of contents may have {allowed:,} bytes. That of `{path}` has {header_bytes:,}. If you trust it, "
            f"raise the limit with the environment variable `{VARIABLE}={-(-header_bytes // 10**6)}MB`."
        )
