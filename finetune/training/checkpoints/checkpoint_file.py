"""Files of checkpoints: arrays and a JSON document, under a name that holds a checksum of the content.

The format is safetensors, which runs no code and which other programs read. A file is written whole or not at all, and
one whose content is not that of its name, or not what a training writes, is passed over in favour of the one before.
"""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.machine_failures import raise_machine_failure
from finetune.plain_shapes import fault, parse
from finetune.results.run_folder import replacing
from finetune.training.checkpoints.content import HEADER, fault_in_document, fault_in_tensor, type_of

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
    content = _content(saved)
    number = max((number for number, _ in _files(folder)), default=0) + 1
    path = folder / f"step-{steps:07d}-{number:05d}-{_checksum(content)}.safetensors"
    with replacing(path, durable=durable) as temporary, temporary.open("wb") as file:
        file.writelines(content)
    return path


def read_newest(folder: Path) -> tuple[Path | None, Saved | None, dict[Path, str]]:
    """Reads the newest checkpoint that is whole.

    Returns:
        The file and its content, `None` where there is none; and the newer files that are damaged, with what is wrong.
    """
    damaged: dict[Path, str] = {}
    for path in checkpoint_files(folder):
        try:
            return path, read_checkpoint(path), damaged
        except ValueError as error:
            damaged[path] = str(error)
    return None, None, damaged


def read_checkpoint(path: Path) -> Saved:
    """Reads a checkpoint.

    Raises:
        ValueError: Its content is not what was written, or not what a training writes; the text says what is wrong.
        MachineError: Memory has run out, or the storage fails.
    """
    match = _NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            if match is None or hashlib.file_digest(file, "sha256").hexdigest()[:16] != match[3]:
                raise ValueError("its content is not what was written")
        with safe_open(path, framework="numpy") as opened:
            header = parse((opened.metadata() or {}).get("checkpoint", ""))
            if wrong := fault(header, HEADER):
                raise ValueError(wrong)
            if header["format"] != _FORMAT:
                raise ValueError(f"it has the format {header['format']}, and this version reads {_FORMAT}")
            saved = Saved(dict(_unpacked(opened, header["types"])), header["document"])
    except (OSError, SafetensorError) as error:
        raise_machine_failure(error, f"reading `{path}`")
        raise ValueError(str(error)) from error
    if wrong := fault_in_document(saved.document, saved.arrays):
        raise ValueError(wrong)
    return saved


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


def _checksum(content: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:16]


def _content(saved: Saved) -> list[bytes | memoryview]:
    """Returns the content of a file in parts, without a copy of the arrays.

    The library of the format copies them twice. A file is the length of the header as 8 bytes, the header as JSON,
    filled up with blanks, and the tensors one after another. These are bare bytes: the format does not know every type
    of NumPy's, whose names are in the metadata.
    """
    types = {name: [array.dtype.name, list(array.shape)] for name, array in saved.arrays.items()}
    metadata = json.dumps({"format": _FORMAT, "types": types, "document": saved.document})
    flat: Any = (np.ascontiguousarray(array).reshape(-1) for array in saved.arrays.values())
    views = [memoryview(array.view(np.uint8)) for array in flat]
    ends = list(accumulate(len(view) for view in views))
    header = {"__metadata__": {"checkpoint": metadata}} | {
        name: {"dtype": "U8", "shape": [len(view)], "data_offsets": [end - len(view), end]}
        for name, view, end in zip(saved.arrays, views, ends, strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)), text, *views]


def _unpacked(opened: Any, types: Mapping[str, tuple[str, list[int]]]) -> Iterator[tuple[str, np.ndarray]]:
    names = {*opened.keys()}
    for name, (dtype, shape) in types.items():
        if name not in names:
            raise ValueError(f"the tensor `{name}` is missing")
        values = opened.get_tensor(name)
        if wrong := fault_in_tensor(name, dtype, shape, values.nbytes):
            raise ValueError(wrong)
        yield name, np.frombuffer(values.tobytes(), type_of(dtype)).reshape(shape)
