"""Files to arrays: finds out what a file of weights is and reads what it holds."""

import difflib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from finetune.errors import RestoreError, quote
from finetune.pretrained.checkpoints import is_checkpoint_index, read_checkpoint
from finetune.pretrained.keras_files import is_hdf5, is_keras_archive, read_hdf5, read_keras_archive
from finetune.pretrained.weight_file import WeightFile

_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path], WeightFile]], ...] = (
    (is_keras_archive, read_keras_archive),
    (is_hdf5, read_hdf5),
    (is_checkpoint_index, read_checkpoint),
)
_KNOWN = (
    "Known are `.keras`, Keras' `.weights.h5` and legacy `.h5`, and TensorFlow checkpoints of TF2 and TF1 "
    "(`prefix`, `prefix.index`, or a folder with a `checkpoint` file)"
)


def read_weights(path: str | Path) -> WeightFile:
    """Reads what a file of pretrained weights holds; the values themselves are fetched later, one by one.

    The format is told by the content, not by the name.

    Args:
        path: A `.keras` file, Keras weights in HDF5 (of Keras 3, Keras 2 or tf_keras), a TensorFlow checkpoint by its
            prefix or its `.index` file, or a folder of checkpoints, of which the latest is taken.

    Returns:
        The weights, without optimizer slots, counters, metrics and other bookkeeping.

    Raises:
        RestoreError: There is no such file, it is damaged or incomplete, or it holds no weights of a known format.
    """
    file = _weight_path(Path(path))
    read = next((read for recognises, read in _FORMATS if recognises(file)), None)
    if read is None:
        raise RestoreError(f"{_KNOWN}. `{path}` is none of them: {_beginning(file)}.{_prefix_hint(file)}")
    try:
        found = read(file)
    except (OSError, KeyError, ValueError, RuntimeError, IndexError, zipfile.BadZipFile, tf.errors.OpError) as error:
        if isinstance(error, RestoreError):
            raise
        raise RestoreError(
            f"A weight file must be whole. `{path}` looks like one, but reading it failed: {error}. Copy it again."
        ) from error
    if not found.tensors:
        raise RestoreError(
            f"A weight file holds weights. `{path}` ({found.kind}) holds none. Build the model before you save it."
        )
    return found


def _weight_path(path: Path) -> Path:
    index = Path(f"{path}.index")
    if path.is_dir():
        return _latest_in(path)
    if path.is_file():
        return _latest_in(path.parent) if path.name == "checkpoint" else path
    if index.is_file():
        return index
    raise RestoreError(f"A file of pretrained weights must exist. There is no `{path}`.{_nearby(path)}")


def _latest_in(folder: Path) -> Path:
    state = tf.train.get_checkpoint_state(str(folder))
    index = Path(f"{state.model_checkpoint_path}.index") if state and state.model_checkpoint_path else None
    if index is not None and index.is_file():
        return index
    prefixes = sorted(entry.name.removesuffix(".index") for entry in folder.glob("*.index"))
    why = f"names `{index}`, which is gone" if index else "is missing"
    found = f"It holds the checkpoints {quote(prefixes)}; give one of them" if prefixes else _contents(folder)
    raise RestoreError(
        f"A folder of checkpoints has a file `checkpoint` that names the latest. In `{folder}` it {why}. {found}."
    )


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"It holds {quote(names)}; give the file itself" if names else "The folder is empty"


def _nearby(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if folder != path.parent:
        return f" The nearest folder that exists is `{folder}`."
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(f'`{folder / name}`' for name in close)}?"
    return f" `{folder}` holds {quote(names)}." if names else f" `{folder}` is empty."


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(24)
    return f"it begins with `{start!r}`" if start else "it is empty"


def _prefix_hint(file: Path) -> str:
    prefix = re.sub(r"\.(data-\d+-of-\d+|meta)$", "", str(file))
    return f" Give the checkpoint's prefix, `{prefix}`." if Path(f"{prefix}.index").is_file() else ""
