"""Where features are kept: arrays under the hash of all they depend on, in memory or as files of bare values."""

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

from finetune.data.batches import Rows, file_rows, shared_rows
from finetune.results.formatting import size_text
from finetune.results.run_folder import write_json

MEMORY_SHARE = 0.25  # of what is available
DISK_MARGIN_BYTES = 2**30
_ALIGNMENT = 64  # TensorFlow's kernels need it


@dataclass(frozen=True)
class Kept:
    """An array that is kept.

    Attributes:
        rows: The array.
        nbytes: Its size.
        place: `memory` or `disk`.
        masked: Whether a mask goes with it, which is kept under `of_mask(key)`.
    """

    rows: Rows
    nbytes: int
    place: str
    masked: bool = False


@dataclass(eq=False)
class FeatureStore:
    """Keeps arrays by key, each whole or not at all.

    What is in memory lives as long as the store. Files are found again by a later store with the same folder, and are
    taken only if they are as long as their manifest says and have its checksum.

    Attributes:
        folder: Where files go; made when the first is written. `None` for no files.
    """

    folder: Path | None = None
    kept: dict[str, Kept] = field(default_factory=dict)

    def find(self, key: str) -> Kept | None:
        """Returns what is kept under a key, from memory or from a file that is whole."""
        if key not in self.kept and self.folder is not None and (found := _read(self.folder, key)):
            self.kept[key] = found
        return self.kept.get(key)

    def has(self, key: str) -> bool:
        """Whether an array is kept, with its mask if it has one."""
        found = self.find(key)
        return found is not None and (not found.masked or self.find(of_mask(key)) is not None)

    def forget_others(self, keys: Collection[str]) -> None:
        """Lets go of all but some; files go, too, if this store wrote or found them."""
        for key in [key for key in self.kept if key not in keys]:
            if self.kept.pop(key).place == "disk" and self.folder is not None:
                _remove(self.folder, key)

    @contextmanager
    def writing(
        self, key: str, dtype: tf.DType, shape: tuple[int, ...], place: str, *, masked: bool = False
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Gives a function that takes an array bit by bit, in order; the whole is kept when the block ends well."""
        nbytes = prod(shape) * dtype.size
        if place == "memory":
            with _filling(nbytes) as (array, append):
                yield append
            self.kept[key] = Kept(shared_rows(array, dtype, shape), nbytes, place, masked)
        else:
            assert self.folder is not None
            about = {"dtype": dtype.name, "shape": list(shape), "masked": masked}
            with _filing(self.folder, key, nbytes, about) as append:
                yield append
            self.kept[key] = Kept(file_rows(_data(self.folder, key), dtype, shape), nbytes, place, masked)


@contextmanager
def _filling(nbytes: int) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], None]]]:
    array, done = _aligned(nbytes), 0

    def append(part: np.ndarray) -> None:
        nonlocal done
        array[done : done + part.nbytes] = _bytes(part)
        done += part.nbytes

    yield array, append
    _check_length(done, nbytes)


@contextmanager
def _filing(folder: Path, key: str, nbytes: int, about: dict[str, Any]) -> Iterator[Callable[[np.ndarray], None]]:
    folder.mkdir(parents=True, exist_ok=True)
    _remove_files(folder, key)
    digest = hashlib.blake2b()
    try:
        with _data(folder, key).open("wb") as file:

            def append(part: np.ndarray) -> None:
                values = _bytes(part)
                digest.update(values.data)
                file.write(values.data)

            yield append
        _check_length(_data(folder, key).stat().st_size, nbytes)
        # Last, and whole or not at all: without it the values count for nothing.
        write_json(_manifest(folder, key), {**about, "checksum": digest.hexdigest()})
    except BaseException:
        _remove(folder, key)
        raise


def choose_place(nbytes: int, mode: str, folder: Path | None, memory: int | None = None) -> tuple[str, str]:
    """Decides where to keep features.

    Args:
        nbytes: Their size.
        mode: `auto`, `off`, `memory` or `disk`.
        folder: Where files may go, or `None`.
        memory: Bytes of memory available; by default as the system tells.

    Returns:
        `memory`, `disk` or `off`, and why it is off.
    """
    memory = available_memory() if memory is None else memory
    share = MEMORY_SHARE if mode == "auto" else 0.9
    if mode in ("auto", "memory") and nbytes <= share * memory:
        return "memory", ""
    room = shutil.disk_usage(_existing(folder)).free - DISK_MARGIN_BYTES if folder else 0
    if mode in ("auto", "disk") and folder is not None and nbytes <= room:
        return "disk", ""
    memory_has = f"{share:.0%} of the {size_text(memory)} of memory that are available"
    disk_has = f"the {size_text(max(room, 0))} that `{folder}` has room for" if folder else "nothing on disk"
    has = {"auto": f"{memory_has}, and {disk_has}", "memory": memory_has, "disk": disk_has}
    return "off", "" if mode == "off" else f"they take {size_text(nbytes)}, which is more than {has[mode]}"


def available_memory() -> int:
    """Returns the bytes of memory that a program may still take: what the system tells, and no more than its limit."""
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**31]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))]
    with suppress(OSError, ValueError):  # `max` is no number: there is no limit
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(found), 0)


def _read(folder: Path, key: str) -> Kept | None:
    try:
        manifest = json.loads(_manifest(folder, key).read_text(encoding="utf-8"))
        dtype, shape = tf.as_dtype(manifest["dtype"]), tuple(manifest["shape"])
        nbytes = prod(shape) * dtype.size
        with _data(folder, key).open("rb") as file:
            whole = os.fstat(file.fileno()).st_size == nbytes
            if whole and hashlib.file_digest(file, hashlib.blake2b).hexdigest() == manifest["checksum"]:
                return Kept(file_rows(_data(folder, key), dtype, shape), nbytes, "disk", manifest["masked"])
    except (OSError, ValueError, TypeError, KeyError):
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


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _check_length(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"features of {wanted} bytes were announced, and {found} came")


def _bytes(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]
