"""Prefixes of TensorFlow checkpoints: a checkpoint is an index and data files, and none of them has its name.

`model.ckpt-300` is `model.ckpt-300.index` and `model.ckpt-300.data-00000-of-00001`; TF1 adds `model.ckpt-300.meta`, a
graph, which restoring does not need.
"""

import re
from pathlib import Path


def prefixes_in(folder: Path) -> list[str]:
    """Returns the prefixes of the checkpoints in a folder, by the indexes that are there."""
    return sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))


def without_index(path: Path) -> str:
    """Returns a sentence if `path` names a checkpoint whose index was left behind; otherwise an empty string.

    Args:
        path: A prefix, or a folder of which such a prefix may be the only one.
    """
    is_folder = path.is_dir()
    folder = path if is_folder else path.parent
    if not folder.is_dir() or (is_folder and prefixes_in(folder)):
        return ""
    for name in sorted(entry.name for entry in folder.iterdir()):
        part = re.fullmatch(r"(.+)\.(data-\d+-of-\d+|meta)", name)
        if part and (is_folder or part[1] == path.name) and not (folder / f"{part[1]}.index").exists():
            return (
                f"A checkpoint needs its index and all its data files. `{folder / name}` is there, and "
                f"`{folder / part[1]}.index` is not. Copy all files that begin with `{part[1]}` to `{folder}`."
            )
    return ""
