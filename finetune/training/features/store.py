"""Where features are kept: arrays under the hash of all they depend on, in memory or as files of bare values.

On disk an array is two files: `<key>.bin`, the values as they are in memory, and `<key>.json`, the manifest with type,
shape and checksum. The manifest is written last, so an array whose writing was interrupted does not exist.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.available_memory import available_memory
from finetune.data.aligned_arrays import aligned_array
from finetune.data.rows import Rows, file_rows, shared_rows
from finetune.results.formatting import size_text
from finetune.results.run_folder import write_json

MEMORY_SHARE = 0.25  # of the available memory that `auto` takes at most: training needs the rest
DISK_MARGIN_BYTES = 2**30  # that stay free on the disk


@dataclass(frozen=True)
class Kept:
    """An array that is kept.

    Attributes:
        rows: The array, shape `(rows, ...)`.
        nbytes: Its size.
        place: `memory` or `disk`.
        masked: Whether there is a mask for it, kept under `of_mask(key)`.
    """

    rows: Rows
    nbytes: int
    place: str
    masked: bool = False


@dataclass(eq=False)
class FeatureStore:
    """Keeps arrays by key, each whole or not at all.

    Arrays in memory live as long as the store. Files are used again by a later store with the same folder, if their
    length and checksum are those in the manifest.

    Attributes:
        folder: Where files go; created with the first file. `None` for no files.
        reserve: Bytes that stay free on the disk, for what else is written there.
        kept: The arrays in use, by key.
    """

    folder: Path | None = None
    reserve: int = DISK_MARGIN_BYTES
    kept: dict[str, Kept] = field(default_factory=dict)

    def find(self, key: str) -> Kept | None:
        """Returns the array under a key, from memory or from a file that is whole; `None` if there is none."""
        if key not in self.kept and self.folder is not None and (kept := _read(self.folder, key)):
            self.kept[key] = kept
        return self.kept.get(key)

    def has(self, key: str) -> bool:
        """Returns whether an array is kept, with its mask if it has one."""
        kept = self.find(key)
        return kept is not None and (not kept.masked or self.find(of_mask(key)) is not None)

    def forget_others(self, keys: Collection[str]) -> None:
        """Removes all arrays but those with these keys; also files, if this store wrote or used them."""
        for key in [key for key in self.kept if key not in keys]:
            if self.kept.pop(key).place == "disk" and self.folder is not None:
                _remove(self.folder, key)

    @contextmanager
    def writing(
        self, key: str, dtype: tf.DType, shape: tuple[int, ...], place: str, *, masked: bool = False
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Yields a function that appends a part to the array; the array is kept when the block ends without an error.

        Args:
            key: Key of the array.
            dtype: Its type.
            shape: Its whole shape; the parts are appended along the first axis, in order.
            place: `memory` or `disk`.
            masked: Whether there is a mask for it.

        Raises:
            ValueError: The parts are fewer or more bytes than `shape` says.
        """
        nbytes = prod(shape) * dtype.size
        if place == "memory":
            with _writing_memory(nbytes) as (array, append):
                yield append
            self.kept[key] = Kept(shared_rows(array, dtype, shape), nbytes, place, masked)
        else:
            assert self.folder is not None
            manifest = {"dtype": dtype.name, "shape": list(shape), "masked": masked}
            with _writing_file(self.folder, key, nbytes, manifest) as append:
                yield append
            self.kept[key] = Kept(file_rows(_data(self.folder, key), dtype, shape), nbytes, place, masked)


@contextmanager
def _writing_memory(nbytes: int) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], None]]]:
    array, done = aligned_array((nbytes,)), 0

    def append(part: np.ndarray) -> None:
        nonlocal done
        array[done : done + part.nbytes] = _bytes(part)
        done += part.nbytes

    yield array, append
    _check_length(done, nbytes)


@contextmanager
def _writing_file(
    folder: Path, key: str, nbytes: int, manifest: dict[str, Any]
) -> Iterator[Callable[[np.ndarray], None]]:
    folder.mkdir(parents=True, exist_ok=True)
    _remove_files(folder, key)
    # Faster than SHA-256; it protects against damage, not against an attacker.
    digest = hashlib.blake2b()
    try:
        with _data(folder, key).open("wb") as file:

            def append(part: np.ndarray) -> None:
                values = _bytes(part)
                digest.update(values.data)
                file.write(values.data)

            yield append
        _check_length(_data(folder, key).stat().st_size, nbytes)
        # Last, and atomically: without a manifest the values are ignored.
        write_json(_manifest(folder, key), {**manifest, "checksum": digest.hexdigest()})
    # Also on Ctrl-C: half an array must not stay on the disk.
    except BaseException:
        _remove(folder, key)
        raise


def choose_place(
    nbytes: int, mode: str, folder: Path | None, memory: int | None = None, reserve: int = DISK_MARGIN_BYTES
) -> tuple[str, str]:
    """Decides where to keep features.

    Args:
        nbytes: Their size.
        mode: `auto`, `off`, `memory` or `disk`.
        folder: Where files may go, or `None`.
        memory: Bytes of memory available; by default as reported by the system.
        reserve: Bytes that stay free on the disk.

    Returns:
        `memory`, `disk` or `off`, and why it is `off`.
    """
    # `auto` leaves most of the memory to the training; who asks for `memory` gets nearly all of it.
    memory = available_memory() if memory is None else memory
    share = MEMORY_SHARE if mode == "auto" else 0.9
    if mode in ("auto", "memory") and nbytes <= share * memory:
        return "memory", ""
    room = 0
    if folder is not None:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(nearest).free - reserve
    if mode in ("auto", "disk") and folder is not None and nbytes <= room:
        return "disk", ""
    in_memory = f"{share:.0%} of the {size_text(memory)} of memory that are available"
    on_disk = f"the {size_text(max(room, 0))} that are free in `{folder}`" if folder else "nothing on disk"
    limits = {"auto": f"{in_memory}, and {on_disk}", "memory": in_memory, "disk": on_disk}
    return "off", "" if mode == "off" else f"they take {size_text(nbytes)}, which is more than {limits[mode]}"


def _read(folder: Path, key: str) -> Kept | None:
    """Returns the array in a file; removes the file and returns `None` if it is damaged."""
    try:
        manifest = json.loads(_manifest(folder, key).read_text(encoding="utf-8"))
        dtype, shape = tf.as_dtype(manifest["dtype"]), tuple(manifest["shape"])
        nbytes = prod(shape) * dtype.size
        with _data(folder, key).open("rb") as file:
            is_complete = os.fstat(file.fileno()).st_size == nbytes
            if is_complete and hashlib.file_digest(file, hashlib.blake2b).hexdigest() == manifest["checksum"]:
                return Kept(file_rows(_data(folder, key), dtype, shape), nbytes, "disk", manifest["masked"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    _remove(folder, key)
    return None


def of_mask(key: str) -> str:
    """Returns the key of the mask of the array with this key."""
    return f"{key}-mask"


def _remove_files(folder: Path, key: str) -> None:
    for path in (_manifest(folder, key), _data(folder, key)):
        with suppress(OSError):
            path.unlink()


def _remove(folder: Path, key: str) -> None:
    _remove_files(folder, key)
    with suppress(OSError):
        folder.rmdir()  # if it is empty


def _data(folder: Path, key: str) -> Path:
    return folder / f"{key}.bin"


def _manifest(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _check_length(written: int, expected: int) -> None:
    if written != expected:
        raise ValueError(f"Features of {expected} bytes were expected, and {written} bytes were written.")


def _bytes(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
