"""Files of checkpoints: arrays and a JSON document, under a name that holds a checksum of the content.

The format is safetensors, which runs no code and which other programs read. A file is written whole or not at all, and
one whose content is not that of its name is passed over in favour of the one before.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from finetune.results.run_folder import replacing

_NAME = re.compile(r"step-(\d+)-(\d+)-([0-9a-f]{16})\.safetensors")  # steps made, number of the file, checksum
_FORMAT = 1
BEFORE_COOLDOWN = "before_cooldown"  # folder of the last file before rates fall, within that of all others


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint.

    Attributes:
        arrays: Arrays by name.
        document: What is no array, as JSON has it.
    """

    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


def write_checkpoint(folder: Path, saved: Saved, *, steps: int, durable: bool = True) -> Path:
    """Writes a checkpoint, whole or not at all.

    Args:
        folder: Where to; created if need be.
        saved: The content.
        steps: Steps made, which the name says.
        durable: As for `replacing`.

    Returns:
        The file.

    Raises:
        WriteError: It cannot be written.
    """
    content = save(*_packed(saved))
    number = max((number for number, _ in _files(folder)), default=0) + 1
    path = folder / f"step-{steps:07d}-{number:05d}-{_checksum(content)}.safetensors"
    with replacing(path, durable=durable) as temporary, temporary.open("wb") as file:
        file.write(content)
    return path


def read_newest(folder: Path) -> tuple[Path | None, Saved | None, list[Path]]:
    """Reads the newest checkpoint that is whole.

    Returns:
        The file and its content, `None` where there is none; and the newer files that are damaged.
    """
    damaged: list[Path] = []
    for path in checkpoint_files(folder):
        saved = read_checkpoint(path)
        if saved is not None:
            return path, saved, damaged
        damaged.append(path)
    return None, None, damaged


def read_checkpoint(path: Path) -> Saved | None:
    """Reads a checkpoint; `None` if its content is not what was written."""
    match = _NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            if match is None or hashlib.file_digest(file, "sha256").hexdigest()[:16] != match[3]:
                return None
        with safe_open(path, framework="numpy") as opened:
            header = json.loads(opened.metadata()["checkpoint"])
            if header["format"] != _FORMAT:
                return None
            return Saved(dict(_unpacked(opened, header["types"])), header["document"])
    except (OSError, SafetensorError):
        return None


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, newest first, whole or not."""
    return [path for _, path in sorted(_files(folder), reverse=True)]


def steps_of(path: Path) -> int:
    """Returns the steps that were made when a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def copy_checkpoint(path: Path, folder: Path) -> None:
    """Keeps a checkpoint in another folder, in which it is then the only one; takes no room while both are there."""
    with suppress(OSError):  # the training goes on without
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        try:
            target.hardlink_to(path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            shutil.copy2(path, target)
        for other in checkpoint_files(folder):
            if other != target:
                other.unlink()


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoints, and what was being written when a process was killed."""
    for path in [*checkpoint_files(folder)[keep:], *folder.glob(".writing-step-*.safetensors")]:
        with suppress(OSError):
            path.unlink()


def _files(folder: Path) -> list[tuple[int, Path]]:
    with suppress(OSError):
        matches = [(match, entry) for entry in os.scandir(folder) if (match := _NAME.fullmatch(entry.name))]
        # By the number of the file: a training that went back to an older file makes the same steps again.
        return [(int(match[2]), Path(entry)) for match, entry in matches]
    return []


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _packed(saved: Saved) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns tensors and metadata. The tensors are bare bytes: the format does not know every type of NumPy's."""
    types = {name: [array.dtype.name, list(array.shape)] for name, array in saved.arrays.items()}
    header = json.dumps({"format": _FORMAT, "types": types, "document": saved.document})
    tensors = {
        name: np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8) for name, array in saved.arrays.items()
    }
    return tensors, {"checkpoint": header}


def _unpacked(opened: Any, types: Mapping[str, tuple[str, list[int]]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, (dtype, shape) in types.items():
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        values = opened.get_tensor(name) if prod(shape) else np.empty(0, np.uint8)
        yield name, np.frombuffer(values.tobytes(), kind).reshape(shape)
