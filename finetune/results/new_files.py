"""Files that a command writes where the user says: never over one that is there, unless that is asked for."""

import os
from pathlib import Path

from finetune.errors import FinetuneError


def check_new_file(path: Path, *, overwrite: bool = False) -> None:
    """Checks that a file may be written.

    Raises:
        FinetuneError: There is a file of this name and `overwrite` is false, or it is a folder.
    """
    if path.is_dir():
        raise FinetuneError(f"A file is written. `{path}` is a folder. Name a file in it.")
    if os.path.lexists(path) and not overwrite:
        raise FinetuneError(
            f"An existing file is not overwritten. `{path}` exists. Add `--overwrite`, or name another file."
        )
