"""Token ids in files, for the next run with the same texts and the same tokenizer.

A set of token ids is some files in a folder: `<key>.ids` and, of pairs, `<key>.types`, bare values as they lie in
memory; `<key>.npy`, the number of tokens of each text; and `<key>.json` with their checksums. The last is written last,
and each is moved to its name when it is whole: two runs may write the same at once, and what a run that was interrupted
has left is not read.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.rows import Rows, file_rows
from finetune.errors import DataError

_FORM = 1  # of these files; others are not read


def keep_tokens(folder: Path, key: str, parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Writes token ids as they come; no more than a part is in memory.

    Args:
        folder: The folder; it is made if needed.
        key: A hash of all that they depend on.
        parts: Ids, types, lengths and whether texts were cut, as `finetune.data.tokenizer_file.Encode` returns them.

    Raises:
        DataError: The folder cannot be written to.
    """
    temporary = [folder / f".{key}-{os.getpid()}.{name}" for name in ("ids", "types")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lengths, cut, highest, any_type = [], 0, 0, False
        with temporary[0].open("wb") as ids_file, temporary[1].open("wb") as types_file:
            for ids, types, of_part, is_cut in parts:
                ids_file.write(ids.astype("<i4").tobytes())
                types_file.write(types.astype("<i4").tobytes())
                lengths.append(of_part)
                cut, highest = cut + int(is_cut.sum()), max(highest, int(ids.max(initial=0)))
                any_type = any_type or bool(types.any())
            # A gather needs a value to read, also where no text has a token.
            for file in (ids_file, types_file):
                file.write(b"" if file.tell() else bytes(4))
        np.save(temporary[0].with_suffix(".npy"), np.concatenate(lengths))
        names = {".ids": temporary[0], ".npy": temporary[0].with_suffix(".npy")}
        names |= {".types": temporary[1]} if any_type else {}
        about: dict[str, Any] = {"form": _FORM, "cut": cut, "highest": highest}
        about["files"] = {ending: _checksum(path) for ending, path in names.items()}
        for ending, path in names.items():
            path.replace(folder / f"{key}{ending}")
        manifest = temporary[0].with_suffix(".json")
        manifest.write_text(json.dumps(about), encoding="utf-8")
        manifest.replace(folder / f"{key}.json")
    except OSError as error:
        raise DataError(
            f"Token ids are kept in the folder that `cache` names. `{folder}` cannot be written to: "
            f"{error.strerror or error}. Name another folder, or remove `cache`."
        ) from error
    finally:
        for path in temporary:
            for each in (path, path.with_suffix(".npy"), path.with_suffix(".json")):
                with suppress(OSError):
                    each.unlink()


def kept_tokens(folder: Path, key: str) -> tuple[Rows, Rows | None, np.ndarray, int, int] | None:
    """Returns token ids that were kept: ids, types, lengths, how many were cut, and the largest id.

    Ids and types stay in their files, which the operating system reads when they are needed.

    Args:
        folder: The folder.
        key: A hash of all that they depend on.

    Returns:
        `None` where there are none, or the files are damaged.
    """
    try:
        about: Any = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        files = {ending: folder / f"{key}{ending}" for ending in about["files"]}
        whole = all(_checksum(path) == about["files"][ending] for ending, path in files.items())
        if about["form"] != _FORM or not whole:
            return None
        lengths = np.load(files[".npy"], allow_pickle=False)
        ids, types = (
            file_rows(files[ending], tf.int32, (files[ending].stat().st_size // 4,)) if ending in files else None
            for ending in (".ids", ".types")
        )
        assert ids is not None
        return ids, types, lengths, int(about["cut"]), int(about["highest"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()
