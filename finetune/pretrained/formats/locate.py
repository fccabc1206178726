"""From what the user names, a file, a folder or a checkpoint's prefix, to the one file to read."""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.errors import RestoreError, quote
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

# What a folder of several files is about: the first of these that is there. The rest only goes with it.
_CHIEF = (
    *("saved_model.pb", "checkpoint", "model.safetensors.index.json", "model.weights.json"),
    *("model.weights.h5", "model.safetensors", "model.keras"),
)
_Recognises = Callable[[Path], bool]
_WEIGHTS: tuple[_Recognises, ...] = (
    *(is_saved_model, is_shard_index, is_hdf5, is_npz, is_zip),
    *(is_checkpoint_index, is_safetensors, is_tar),
)


def weight_path(path: Path) -> Path:
    """Returns the file to read: itself, the index of a checkpoint, or what a folder is about.

    Raises:
        RestoreError: There is no such file, or a folder holds none or several.
    """
    index = Path(f"{path}.index")
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _latest_in(path.parent) if path.name == "checkpoint" else path
    if index.is_file():
        return index
    raise RestoreError(f"A file of pretrained weights must exist. There is no `{path}`.{_nearby(path)}")


def _in_folder(folder: Path) -> Path:
    chief = next((folder / name for name in _CHIEF if (folder / name).is_file()), None)
    if chief is not None:
        return _latest_in(folder) if chief.name == "checkpoint" else chief
    entries = sorted(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():  # as archives are often packed
        return _in_folder(entries[0])
    files = _weight_files(entries)
    if len(files) == 1:
        return files[0]
    raise RestoreError(
        f"A folder of weights holds one file of them, or a file that says which. `{folder}` {_held(folder, files)}."
    )


def _weight_files(entries: Sequence[Path]) -> list[Path]:
    files = [path for path in entries if path.is_file()]
    found = [path for path in files if any(recognises(path) for recognises in _WEIGHTS)]
    indices = [path for path in found if path.suffix == ".json"]
    return indices or found  # an index names the others


def _held(folder: Path, files: Sequence[Path]) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "is empty"
    if not files:
        return f"holds neither: {quote(names)}"
    if all(path.suffix == ".index" for path in files):
        prefixes = [path.name.removesuffix(".index") for path in files]
        return f"lacks the file `checkpoint` and holds the checkpoints {quote(prefixes)}; give one of them"
    return f"holds {quote(path.name for path in files)}; give the file itself"


def _latest_in(folder: Path) -> Path:
    state = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace")
    named = re.search(r'^model_checkpoint_path: "(.*)"$', state, re.MULTILINE)
    index = folder / f"{named[1]}.index" if named else None
    moved = folder / f"{Path(named[1]).name}.index" if named else None
    for candidate in (moved, index):  # the name may be that of the folder where it was written
        if candidate and candidate.is_file():
            return candidate
    prefixes = sorted(entry.name.removesuffix(".index") for entry in folder.glob("*.index"))
    why = f"names `{index}`, which is gone" if index else "names none"
    found = f"It holds the checkpoints {quote(prefixes)}; give one of them" if prefixes else "It holds no checkpoint"
    raise RestoreError(
        f"A folder of checkpoints has a file `checkpoint` that names the latest. In `{folder}` it {why}. {found}."
    )


def _nearby(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if folder != path.parent:
        return f" The nearest folder that exists is `{folder}`."
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(f'`{folder / name}`' for name in close)}?"
    return f" `{folder}` holds {quote(names)}." if names else f" `{folder}` is empty."
