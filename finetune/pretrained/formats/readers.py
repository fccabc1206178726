"""Reads pretrained weights: recognises the format of a file and hands it to the reader of that format.

Of a weight file only the names, shapes and types are read at first; see `weight_file.StoredTensor`.
"""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from finetune.errors import FinetuneError, RestoreError, reason
from finetune.machine_failures import raise_machine_failure
from finetune.pretrained.formats.archives import UnpackedArchive, unpack
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
from finetune.pretrained.formats.keras_files import is_keras_archive, read_hdf5, read_keras_archive
from finetune.pretrained.formats.locate import locate_weights
from finetune.pretrained.formats.safetensors_and_npz import read_npz, read_safetensors, refuse_pickle
from finetune.pretrained.formats.shards import read_shards
from finetune.pretrained.formats.tensor_roles import AVERAGE
from finetune.pretrained.formats.weight_file import WeightFile
from finetune.startup import start_tensorflow

# `finetune inspect` answers at once for the other formats: only these two need TensorFlow, which takes seconds to load.


def _read_checkpoint(path: Path) -> WeightFile:
    _load_tensorflow()
    from finetune.pretrained.formats.checkpoints import read_checkpoint

    return read_checkpoint(path)


def _read_saved_model(path: Path) -> WeightFile:
    _load_tensorflow()
    from finetune.pretrained.formats.saved_models import read_saved_model

    return read_saved_model(path)


def _load_tensorflow() -> None:
    if "tensorflow" not in sys.modules:
        start_tensorflow()


# The first that recognises a file reads it. Pickles come first, since PyTorch packs them into zip archives; of the
# other zip archives npz holds nothing but arrays, and `.keras` has a file of weights inside.
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
    "Known formats are `.keras`, Keras' `.weights.h5` and legacy `.h5`, safetensors, npz, SavedModels, TensorFlow "
    "checkpoints of TF2 and TF1 (`prefix`, `prefix.index`, or a folder with a `checkpoint` file), and folders and "
    "archives of one of these"
)


def read_weights(path: str | Path) -> WeightFile:
    """Reads the names, shapes and types of the weights in a file; each value is read later, on its own.

    The format is recognised by the content, not by the name.

    Args:
        path: A `.keras` file, Keras weights in HDF5 (of Keras 3, Keras 2 or tf_keras), safetensors or npz, the JSON
            index of weights in several files, a TensorFlow checkpoint by its prefix or its `.index` file, a SavedModel,
            a folder of one of these (of several checkpoints the latest; a KerasHub preset), or an archive of that
            (`.tar.gz`, `.tgz`, `.tar`, `.zip`).

    Returns:
        The weights, and what else the file holds: optimizer slots, counters, metrics, random generators' states.

    Raises:
        RestoreError: There is no such file, it is damaged or incomplete, or it holds no weights of a known format.
    """
    weight_file = read_tensors(path)
    # A file of an unbuilt Keras model is valid and empty; restoring it would silently do nothing.
    if not weight_file.tensors and all(tensor.role != AVERAGE for tensor in weight_file.others):
        raise RestoreError(
            f"A weight file must hold weights. `{path}` ({weight_file.kind}) holds none. Build the model before you "
            "save it."
        )
    return weight_file


def read_tensors(path: str | Path) -> WeightFile:
    """Reads what `read_weights` reads, also from files without weights: those of an optimizer alone, or of counters.

    Raises:
        RestoreError: There is no such file, it is damaged or incomplete, or it is of no known format.
    """
    try:
        return _read(Path(path), archives=True)
    except OSError as error:  # no permission, a file of the system that cannot be read
        if error.errno != errno.EIO:  # which is what files such as `/proc/self/mem` answer
            raise_machine_failure(error, f"Reading `{path}`")
        raise RestoreError(f"A weight file must be readable. `{path}` is not: {error.strerror or error}.") from error


def _read(path: Path, *, archives: bool) -> WeightFile:
    file = locate_weights(path)
    # Archives come first: a gzip file begins like nothing else, and a zip archive may be npz, `.keras` or PyTorch's.
    if archives and _is_archive(file):
        return _read_archive(file)
    read = next((read for is_kind, read in _FORMATS if is_kind(file)), None)
    if read is None:
        # Of the three files of a checkpoint users pick the largest, `ckpt.data-00000-of-00001`.
        prefix = re.sub(r"\.(data-\d+-of-\d+|meta)$", "", str(file))
        advice = f" Give the checkpoint's prefix, `{prefix}`." if Path(f"{prefix}.index").is_file() else ""
        raise RestoreError(f"{_KNOWN}. `{file}` is not in one of these formats: {_content(file)}.{advice}")
    with _undamaged(path):
        return read(file)


# How files begin that come in place of weights.
_OTHERS = (
    (b"version https://git-lfs", "it is a Git LFS pointer. Fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "it is a web page, as servers send it in place of a file. Download it again"),
    (b"<html", "it is a web page, as servers send it in place of a file. Download it again"),
    (b"\x89png", "it is an image"),
    (b"\xff\xd8\xff", "it is an image"),
    (b"%pdf", "it is a PDF document"),
)


def _content(file: Path) -> str:
    """Says what a file of another format is, without a byte of it: a recipe may name any file of whoever runs it."""
    with file.open("rb") as opened:
        start = opened.read(1024)
    if not start:
        return "it is empty"
    known = next((name for magic, name in _OTHERS if start.lower().lstrip().startswith(magic)), None)
    return known or ("it is text" if start.isascii() and b"\0" not in start else "it begins like none of them")


@contextmanager
def _undamaged(path: str | Path) -> Iterator[None]:
    """Turns whatever a reader raises into one message: over damaged files the formats' libraries raise anything."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        raise_machine_failure(error, f"Reading `{path}`")
        raise RestoreError(
            f"A weight file must be complete and undamaged. Reading `{path}` failed: "
            f"{reason(error) if str(error) else type(error).__name__}. Copy it again."
        ) from error


def _is_archive(file: Path) -> bool:
    is_weights_in_zip = is_npz(file) or is_keras_archive(file) or is_pickle(file)
    return is_tar(file) or (is_zip(file) and not is_weights_in_zip)


def _read_archive(file: Path) -> WeightFile:
    with _undamaged(file):
        unpacked = unpack(file)
        try:
            # Archives inside are not unpacked: some are made to contain themselves.
            weight_file = _read(unpacked.folder, archives=False)
        except FinetuneError as error:
            raise_machine_failure(error, f"Reading `{file}`")
            # The user knows the archive, not the temporary folder.
            raise RestoreError(str(error).replace(f"{unpacked.folder}", str(file))) from error
    tensors, others = (
        tuple(replace(tensor, read=partial(_read_unpacked, unpacked, tensor.read)) for tensor in tensors)
        for tensors in (weight_file.tensors, weight_file.others)
    )
    return WeightFile(str(file), weight_file.kind, tensors, others)


def _read_unpacked(unpacked: UnpackedArchive, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Reads a weight; the argument `unpacked` keeps the temporary folder as long as one of its weights is in use."""
    return read()
