"""Folders for what is kept between runs, on machines where others can write to `/tmp`, too.

Whoever makes such a folder first decides what is in it. So a folder is taken only if it belongs to the user and nobody
else can write to it; and what was unpacked into it is compared with the hashes that were noted then.
"""

import hashlib
import json
import os
import stat
from pathlib import Path

from finetune.errors import FinetuneError


def private_folder(path: Path) -> Path:
    """Returns a folder that only the user can write to, and makes it (0700) when it is missing.

    Raises:
        FinetuneError: It is a link, belongs to somebody else, or others can write to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.mkdir(mode=0o700, exist_ok=True)
    state = path.lstat()  # not of what a link leads to
    wrong = ""
    if not stat.S_ISDIR(state.st_mode):
        wrong = "is a link or a file"
    elif hasattr(os, "geteuid") and state.st_uid != os.geteuid():
        wrong = f"belongs to the user with number {state.st_uid}"
    elif os.name != "nt" and state.st_mode & 0o022:
        wrong = "can be written to by others"
    if wrong:
        raise FinetuneError(
            f"A folder for downloaded and unpacked models belongs to you alone: others could put theirs into it. "
            f"`{path}` {wrong}. Remove it, or set `TFHUB_CACHE_DIR` to a folder of yours."
        )
    return path


def write_manifest(folder: Path, manifest: Path) -> None:
    """Notes the hash of every file in a folder.

    Args:
        folder: The folder.
        manifest: The file to write, outside of the folder.
    """
    manifest.write_text(json.dumps(_hashes(folder)))


def is_unchanged(folder: Path) -> bool:
    """Whether a folder holds exactly the files that `write_manifest` noted in the `.json` file of its name."""
    try:
        noted = json.loads(folder.with_suffix(".json").read_text())
        return not folder.is_symlink() and noted == _hashes(folder)
    except (OSError, ValueError, RecursionError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            hashes[path.relative_to(folder).as_posix()] = "link"
        elif path.is_file():
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
