"""Zip archives that others wrote (`.zip`, `.keras`, `.npz`), of which anything may be damaged."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What `zipfile` raises over sizes, versions, methods and flags that make no sense, and over passwords.
_DAMAGE = (NotImplementedError, RuntimeError, OverflowError, EOFError, struct.error, zlib.error, lzma.LZMAError)


@contextmanager
def zip_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive to read its files in a block, where whatever is wrong with it is one kind of error.

    Args:
        path: The archive.

    Raises:
        OSError: It cannot be read.
        zipfile.BadZipFile: It is damaged or encrypted, or a method is used that Python does not know.
        KeyError: It has no such file; raised by what the block calls.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (ValueError, *_DAMAGE) as error:
        raise zipfile.BadZipFile(str(error)) from error
    with archive:
        try:
            yield archive
        except RecursionError:  # of the caller's: Python counts it among the `RuntimeError`s
            raise
        except _DAMAGE as error:
            raise zipfile.BadZipFile(str(error)) from error
