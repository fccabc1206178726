"""Rows to test or validate on that are among the training rows, too: found cheaply, before training.

Rows in memory are hashed; of images and sounds in folders the files are, and only those whose size in bytes is that of
another. Nothing is decoded. `finetune check --deep` reads every row of any source.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import SPLITS, Examples, leaves
from finetune.data.rows import Rows

_HASHED_BYTES = 2**29  # at most, of arrays: about a second
_AT_ONCE = 4096  # rows


def leaked_rows(examples: Examples) -> dict[str, list[int]]:
    """Returns the numbers of the rows of other splits whose inputs are those of a training row, by the split's name.

    It is empty where none are, and where looking would cost too much.
    """
    splits = [name for name in SPLITS if getattr(examples, name)]
    arrays = {name: [array for _, array in leaves("x", getattr(examples, f"x_{name}"))] for name in splits}
    flat = [array for of_split in arrays.values() for array in of_split]
    if all(_is_ready(array) for array in flat):
        if sum(len(array) * _bytes_of_rows(array, [0])[0].nbytes for array in flat) > _HASHED_BYTES:
            return {}
        digests = {name: _of_arrays(of_split) for name, of_split in arrays.items()}
    elif examples.source.get("kind") in ("images", "audio") and all(examples.places.get(name) for name in splits):
        folder = Path(str(examples.source["folder"]))
        digests = _of_files({name: (folder, examples.places[name]) for name in splits})
    else:
        return {}
    trained = {digest for digest in digests["train"] if digest}
    leaked = {name: [n for n, digest in enumerate(digests[name]) if digest in trained] for name in splits[1:]}
    return {name: rows for name, rows in leaked.items() if rows}


def _is_ready(array: Any) -> bool:
    """Whether the rows of an array can be read at once; of text an array holds no more than pointers."""
    return array.is_ready if isinstance(array, Rows) else isinstance(array, np.ndarray) and array.dtype.kind != "O"


def _bytes_of_rows(array: Any, rows: Sequence[int]) -> list[np.ndarray]:
    if isinstance(array, Rows):
        return list(np.asarray(array.take(tf.constant(rows, tf.int64))))
    return [np.ascontiguousarray(array[row]) for row in rows]


def _of_arrays(arrays: Sequence[Any]) -> list[bytes]:
    digests: list[bytes] = []
    for start in range(0, len(arrays[0]), _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, len(arrays[0])))
        parts = [[row.tobytes() for row in _bytes_of_rows(array, numbers)] for array in arrays]
        digests += [hashlib.blake2b(b"|".join(row), digest_size=16).digest() for row in zip(*parts, strict=True)]
    return digests


def _of_files(files: dict[str, tuple[Path, Sequence[str]]]) -> dict[str, list[bytes]]:
    """Returns a hash of each file by its split; an empty one where no file of another split has its size."""

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    sizes = {
        split: np.fromiter((size(folder / name) for name in names), np.int64, len(names))
        for split, (folder, names) in files.items()
    }
    others = {each for split in sizes if split != "train" for each in sizes[split].tolist()}
    shared = {*sizes["train"].tolist()} & others - {-1}

    def digest(path: Path, size: int) -> bytes:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest() if size in shared else b""

    return {
        split: [digest(folder / name, size) for name, size in zip(names, sizes[split].tolist(), strict=True)]
        for split, (folder, names) in files.items()
    }


def warning_of_leaks(leaked: dict[str, list[int]], examples: Examples) -> str:
    """Returns a sentence about rows that `leaked_rows` found; empty where there are none."""
    parts = []
    for name, rows in leaked.items():
        places = examples.places.get(name)
        shown = ", ".join(f"`{places[row] if places else f'row {row}'}`" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        parts.append(f"{len(rows):,} of {len(getattr(examples, name)):,} rows of `{name}` ({shown}{more})")
    if not parts:
        return ""
    has_columns = examples.source.get("kind") in ("table", "tfrecord", "tfds")
    return (
        f"warning: training rows have the same inputs as {' and '.join(parts)}, so these figures are too good. Remove "
        f"the copies{', or split with `by: group`' if has_columns else ''}"
    )
