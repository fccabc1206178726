"""`hashes.json`: the SHA-256 of every file of a finished run, and of the files outside of it that the run has read.

`finetune audit` finds a bit that was changed afterwards, in weights, data, recipe or checkpoints. The hashes are no
signature: who changes a file may write them anew. A copy of `hashes.json` where others cannot write prevents that.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.plain_shapes import parse
from finetune.results.run_documents import fault_in_run
from finetune.results.run_folder import ENDING_FILE, check_holds_run, half_written, is_finished, is_run, write_json
from finetune.results.run_lock import LOCK_FILE

FILE = "hashes.json"
FORMAT = 1
MOST_BYTES = 4 * 2**30  # of files outside of the run folder; of more, sizes and times are kept


@dataclass(frozen=True)
class Audit:
    """How the files of a run compare with its hashes.

    Attributes:
        unchanged: How many files are what they were.
        changed: Files with another content.
        missing: Files that are gone.
        added: Files of the run folder that are not among the hashes, which is no fault.
        by_time: How many of the files outside of the run folder were compared by size and time alone, as they are
            large.
        options: The options of the command that the run was made with.
    """

    unchanged: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    by_time: int
    options: Mapping[str, Any]

    @property
    def holds(self) -> bool:
        """Whether every file is what it was."""
        return not self.changed and not self.missing


def write_hashes(
    folder: Path, options: Mapping[str, Any], read: Iterable[Path] = (), *, removed: Iterable[Path] = ()
) -> None:
    """Writes `hashes.json` of a run that has ended.

    Args:
        folder: The run folder.
        options: The options of the command, which are not in the recipe.
        read: The files outside of the folder that the run has read.
        removed: Files of the folder that are removed afterwards.
    """
    leaves_out = {str(path.relative_to(folder)) for path in removed}
    outside = sorted({path.absolute() for path in read})
    is_large = sum(path.stat().st_size for path in outside) > MOST_BYTES
    document = {
        "format": FORMAT,
        "options": dict(options),
        "files": {name: sha256_of(folder / name) for name in _names(folder) if name not in leaves_out},
        "outside": {str(path): _time_of(path) if is_large else sha256_of(path) for path in outside},
    }
    write_json(folder / FILE, document | {"sha256": _own(document)})


def write_hashes_again(folder: Path, names: Iterable[str]) -> None:
    """Brings some files that were written again into `hashes.json`; nothing happens where there is none.

    Args:
        folder: The run folder.
        names: The files.
    """
    if (folder / FILE).is_file():
        document = _read(folder)
        document["files"] |= {name: sha256_of(folder / name) for name in names}
        write_json(folder / FILE, document | {"sha256": _own(document)})


def check_hashes(folder: Path) -> Audit:
    """Compares every file with `hashes.json`.

    Args:
        folder: The run folder.

    Raises:
        FinetuneError: There are no hashes, or they were changed themselves.
    """
    document = _read(folder)
    results: dict[str, list[str]] = {"unchanged": [], "changed": [], "missing": []}
    # An absolute name stays absolute.
    for name, expected in (document["files"] | document["outside"]).items():
        results[_state(folder / name, expected)].append(name)
    return Audit(
        unchanged=len(results["unchanged"]),
        changed=tuple(results["changed"]),
        missing=tuple(results["missing"]),
        added=tuple(name for name in _names(folder) if name not in document["files"]),
        by_time=sum(" " in expected for expected in document["outside"].values()),
        options=document["options"],
    )


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    """Returns the files of a run folder without its lock, the hashes themselves, and what is not written yet."""
    writing = {*half_written(folder)}
    files = (path for path in folder.rglob("*") if path.is_file() and writing.isdisjoint((path, *path.parents)))
    names = (str(path.relative_to(folder)) for path in files)
    return sorted(name for name in names if name not in (FILE, LOCK_FILE, ENDING_FILE))


def _time_of(path: Path) -> str:
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns}"


def _state(path: Path, expected: str) -> str:
    try:
        actual = _time_of(path) if " " in expected else sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    return "unchanged" if actual == expected else "changed"


def _own(document: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not is_run(folder) and not path.is_file():  # a recipe that is gone is a result of the audit
        check_holds_run(folder, "An audit is of a run.")
    try:
        text = path.read_text(encoding="utf-8")
        document = parse(text)
        is_whole = isinstance(document, dict) and document.get("sha256") == _own(document)
        # JSON has several texts for the same content: `\\u00e9` is `\\u00E9`.
        is_whole = is_whole and text == json.dumps(document, indent=2) + "\n"
    except FileNotFoundError:
        why = (
            "an older version made the run, or the file was removed"
            if is_finished(folder)
            else f"the run has not ended. `finetune resume {folder}` ends it"
        )
        raise FinetuneError(
            f"An audit compares the files of a run with the hashes that it wrote at its end. There is no `{path}`: "
            f"{why}."
        ) from None
    except (ValueError, OSError):
        is_whole, document = False, {}
    if not is_whole:
        raise FinetuneError(
            f"`{path}` is not as the run wrote it, so an audit can show nothing. Restore it from a copy."
        )
    if document.get("format") != FORMAT:
        raise FinetuneError(
            f"`{path}` has the format {document.get('format')!r}, and this version reads {FORMAT}. Use the version of "
            "finetune that wrote it."
        )
    if wrong := fault_in_run(FILE, document):
        raise FinetuneError(f"`{path}` is not as a run writes it: {wrong}. Restore it from a copy.")
    return document
