"""Files to arrays: finds out what a file of weights is and reads what it holds."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from finetune.errors import RestoreError, reason
from finetune.pretrained.formats.archives import Unpacked, unpack
from finetune.pretrained.formats.detect import (
    is_checkpoint_index,
    is_hdf5,
    is_npz,
    is_pickle,
    is_safetensors,
    is_saved_model,
    is_shard_index,
    is_tar,
    is_zip,
)
from finetune.pretrained.formats.safetensors_and_npz import read_npz, read_safetensors, refuse_pickle
from finetune.pretrained.formats.locate import weight_path
from finetune.pretrained.formats.keras_files import is_keras_archive, read_hdf5, read_keras_archive
from finetune.pretrained.formats.shards import read_shards
from finetune.pretrained.formats.weight_file import WeightFile
from finetune.startup import start_tensorflow


def _read_checkpoint(path: Path) -> WeightFile:
    _wake_tensorflow()
    from finetune.pretrained.formats.checkpoints import read_checkpoint

    return read_checkpoint(path)


def _read_saved_model(path: Path) -> WeightFile:
    _wake_tensorflow()
    from finetune.pretrained.formats.saved_models import read_saved_model

    return read_saved_model(path)


def _wake_tensorflow() -> None:
    """Imports TensorFlow, which takes seconds, only for the formats that need it."""
    if "tensorflow" not in sys.modules:
        start_tensorflow()


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path], WeightFile]], ...] = (
    (is_pickle, refuse_pickle),
    (is_saved_model, _read_saved_model),
    (is_npz, read_npz),
    (is_keras_archive, read_keras_archive),
    (is_hdf5, read_hdf5),
    (is_checkpoint_index, _read_checkpoint),
    (is_shard_index, read_shards),
    (is_safetensors, read_safetensors),
)
_KNOWN = (
    "Known are `.keras`, Keras' `.weights.h5` and legacy `.h5`, safetensors, npz, SavedModels, TensorFlow checkpoints "
    "of TF2 and TF1 (`prefix`, `prefix.index`, or a folder with a `checkpoint` file), and folders and archives of one "
    "of these"
)


def read_weights(path: str | Path) -> WeightFile:
    """Reads what a file of pretrained weights holds; the values themselves are fetched later, one by one.

    The format is told by the content, not by the name.

    Args:
        path: A `.keras` file, Keras weights in HDF5 (of Keras 3, Keras 2 or tf_keras), safetensors or npz, the JSON
            index of weights in several files, a TensorFlow checkpoint by its prefix or its `.index` file, a SavedModel,
            a folder of one of these (of checkpoints the latest; a KerasHub preset), or an archive of that (`.tar.gz`,
            `.tgz`, `.tar`, `.zip`).

    Returns:
        The weights, without optimizer slots, counters, metrics and other bookkeeping.

    Raises:
        RestoreError: There is no such file, it is damaged or incomplete, or it holds no weights of a known format.
    """
    return _read(Path(path), archives=True)


def _read(path: Path, *, archives: bool) -> WeightFile:
    file = weight_path(path)
    if archives and _is_archive(file):
        return _from_archive(file)
    read = next((read for recognises, read in _FORMATS if recognises(file)), None)
    if read is None:
        raise RestoreError(f"{_KNOWN}. `{file}` is none of them: {_beginning(file)}.{_hint(file)}")
    with _whole(path):
        found = read(file)
    if not found.tensors:
        raise RestoreError(
            f"A weight file holds weights. `{path}` ({found.kind}) holds none. Build the model before you save it."
        )
    return found


@contextmanager
def _whole(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RestoreError:
        raise
    except Exception as error:  # what the formats' libraries raise over a damaged file is not to be foreseen
        raise RestoreError(
            f"A weight file must be whole. `{path}` looks like one, but reading it failed: "
            f"{reason(error) if str(error) else type(error).__name__}. Copy it again."
        ) from error


def _is_archive(file: Path) -> bool:
    other = is_npz(file) or is_keras_archive(file) or is_pickle(file)
    return is_tar(file) or (is_zip(file) and not other)


def _from_archive(file: Path) -> WeightFile:
    with _whole(file):
        unpacked = unpack(file)
        try:
            found = _read(unpacked.folder, archives=False)  # one in an archive may be without end
        except RestoreError as error:
            raise RestoreError(str(error).replace(f"{unpacked.folder}", str(file))) from error
    # What was unpacked stays as long as one of the weights does.
    tensors = tuple(replace(tensor, read=partial(_read_from, unpacked, tensor.read)) for tensor in found.tensors)
    return WeightFile(str(file), found.kind, tensors)


def _read_from(unpacked: Unpacked, read: Callable[[], np.ndarray]) -> np.ndarray:
    return read()


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(24)
    return f"it begins with `{start!r}`" if start else "it is empty"


def _hint(file: Path) -> str:
    prefix = re.sub(r"\.(data-\d+-of-\d+|meta)$", "", str(file))
    return f" Give the checkpoint's prefix, `{prefix}`." if Path(f"{prefix}.index").is_file() else ""
