"""Finds the file to read from what the user names: a file, a folder, or the prefix of a checkpoint."""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.errors import RestoreError, quote
from finetune.files.checkpoint_prefixes import prefixes_in, without_index
from finetune.pretrained.formats.detect import (
    is_checkpoint_index,
    is_hdf5,
    is_npz,
    is_safetensors,
    is_saved_model,
    is_shard_index,
    is_tar,
    is_zip,
)

# In a folder of several weight files the first of these that exists is read. Other files belong to it: the shards of an
# index, the variables of a SavedModel, or the `task.weights.h5` beside the backbone of a KerasHub preset.
_MAIN_FILES = (
    *("saved_model.pb", "checkpoint", "model.safetensors.index.json", "model.weights.json"),
    *("model.weights.h5", "model.safetensors", "model.keras"),
)
_RECOGNISERS: tuple[Callable[[Path], bool], ...] = (
    *(is_saved_model, is_shard_index, is_hdf5, is_npz, is_zip),
    *(is_checkpoint_index, is_safetensors, is_tar),
)


def locate_weights(path: Path) -> Path:
    """Returns the file to read.

    This is `path` itself, the index of the checkpoint with that prefix, or the main file of a folder (of several
    checkpoints, the latest).

    Raises:
        RestoreError: There is no such file, or a folder holds no weight file, or several of which none is the main one.
    """
    index = Path(f"{path}.index")
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _latest_checkpoint(path.parent) if path.name == "checkpoint" else path
    if index.is_file():
        return index
    if lone := without_index(path):
        raise RestoreError(lone)
    raise RestoreError(f"A file of pretrained weights must exist. There is no `{path}`.{_nearby(path)}")


def _in_folder(folder: Path) -> Path:
    main = next((folder / name for name in _MAIN_FILES if (folder / name).is_file()), None)
    if main is not None:
        return _latest_checkpoint(folder) if main.name == "checkpoint" else main
    entries = sorted(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():  # archives are often packed with their folder
        return _in_folder(entries[0])
    recognised = [path for path in entries if path.is_file() and any(is_kind(path) for is_kind in _RECOGNISERS)]
    # An index names the other files.
    files = [path for path in recognised if path.suffix == ".json"] or recognised
    if len(files) == 1:
        return files[0]
    if not files and (lone := without_index(folder)):
        raise RestoreError(lone)
    raise RestoreError(
        "A folder of weights must hold one weight file, or a file that names the one to read. "
        f"`{folder}` {_content(folder, files)}."
    )


def _content(folder: Path, files: Sequence[Path]) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "is empty"
    if not files:
        return f"holds neither: {quote(names)}"
    if all(path.suffix == ".index" for path in files):
        prefixes = [path.name.removesuffix(".index") for path in files]
        return f"lacks the file `checkpoint` and holds the checkpoints {quote(prefixes)}; give one of them"
    return f"holds {quote(path.name for path in files)}; give the file itself"


def _latest_checkpoint(folder: Path) -> Path:
    """Returns the index of the checkpoint that the folder's file `checkpoint` names as the latest."""
    state = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace")
    latest = re.search(r'^model_checkpoint_path: "(.*)"$', state, re.MULTILINE)
    index = folder / f"{latest[1]}.index" if latest else None
    # The path may be absolute and that of the machine which wrote it: the same file name in this folder comes first.
    in_this_folder = folder / f"{Path(latest[1]).name}.index" if latest else None
    for candidate in (in_this_folder, index):
        if candidate and candidate.is_file():
            return candidate
    prefixes = prefixes_in(folder)
    received = f"names `{index}`, which does not exist" if index else "names none"
    advice = f"It holds the checkpoints {quote(prefixes)}; give one of them" if prefixes else "It holds no checkpoint"
    raise RestoreError(
        "A folder of checkpoints must have a file `checkpoint` that names the latest. "
        f"In `{folder}` it {received}. {advice}."
    )


def _nearby(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if folder != path.parent:
        return f" The nearest folder that exists is `{folder}`."
    names = sorted({*prefixes_in(folder), *(entry.name for entry in folder.iterdir())})
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(f'`{folder / name}`' for name in close)}?"
    return f" `{folder}` holds {quote(names)}." if names else f" `{folder}` is empty."
