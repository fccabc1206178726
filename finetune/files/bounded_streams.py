"""Archives as streams that hand out little at a time: a header of gigabytes is refused before it is in memory.

Python's `tarfile` reads the extended headers of an entry (PAX records, long names) whole, of whatever length they say
they are, and `lzma` takes a dictionary as large as the archive asks for, up to 4 GB.
"""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.files.size_limits import VARIABLE

LONGEST_READ = 4 * 2**20  # bytes in a single read; headers of real archives have kilobytes
DICTIONARY_BYTES = 2**28  # of xz, which takes 65 MB at its highest level
_OPEN = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


class BoundedStream:
    """A file, read only, that refuses to hand out more than `LONGEST_READ` bytes at once.

    Attributes:
        path: What messages call it.
    """

    def __init__(self, path: Path, file: Any):
        self.path, self._file = path, file

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes.

        Args:
            size: How many; `-1` for all.

        Raises:
            FinetuneError: These are too many.
        """
        if size > LONGEST_READ or size < 0:
            raise FinetuneError(
                f"The header of a file in an archive may have {LONGEST_READ:,} bytes, so that a small archive cannot "
                f"fill the memory. In `{self.path}` a header has {size:,}. Pack the files again, with short names."
            )
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        """Goes to a place, as files do."""
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """Returns the place."""
        return self._file.tell()


@contextmanager
def bounded_stream(path: Path) -> Iterator[Any]:
    """Opens a file, which gzip, bzip2 or xz may have compressed, as a stream of its content.

    Raises:
        FinetuneError: xz asks for more memory than an archive needs.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"\xfd7":
        _check_dictionary(path)
    with _OPEN.get(start, open)(path, "rb") as file:
        yield BoundedStream(path, file)


def _check_dictionary(path: Path) -> None:
    """Unpacks an xz archive once with a limit to its memory; each of its blocks may ask for another dictionary."""
    unpacker, piece = lzma.LZMADecompressor(memlimit=DICTIONARY_BYTES), b""
    with path.open("rb") as file:
        try:
            while piece := unpacker.unused_data or file.read(2**16):
                if unpacker.eof:  # streams may follow one another
                    unpacker = lzma.LZMADecompressor(memlimit=DICTIONARY_BYTES)
                unpacker.decompress(piece, max_length=2**20)
                while not (unpacker.eof or unpacker.needs_input):
                    unpacker.decompress(b"", max_length=2**20)
        except lzma.LZMAError as error:
            if "limit" not in str(error).lower():
                return  # damaged: the reader says so
            raise FinetuneError(
                f"An archive may take {DICTIONARY_BYTES:,} bytes of memory while it is unpacked. `{path}` asks for "
                f"more. Unpack it yourself (`xz -d`) and give the folder; `{VARIABLE}` does not change this."
            ) from error
