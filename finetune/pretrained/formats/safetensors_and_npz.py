"""Weights in files of plain arrays by name: safetensors, in one file or several, and npz."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.errors import RestoreError, quote
from finetune.pretrained.formats.not_weights import in_books, is_counter, is_random_state, is_slot
from finetune.pretrained.formats.weight_file import Tensor, WeightFile

_DTYPES = {  # safetensors' words in NumPy's
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    "C64": "complex64",
}


def read_safetensors(path: Path) -> WeightFile:
    """Reads one safetensors file. Only the header is looked at; each weight is read from its own place."""
    return WeightFile(str(path), "safetensors", _weights(_safetensors(path)))


def read_safetensors_shards(index: Path, places: Mapping[str, str], files: Mapping[str, Path]) -> WeightFile:
    """Reads several safetensors files.

    Args:
        index: The file that tells of them.
        places: Which file holds which weight.
        files: Where these files are.

    Raises:
        RestoreError: A weight is not where the index says.
    """
    found = {tensor.name: (shard, tensor) for shard, path in files.items() for tensor in _safetensors(path)}
    lost = [name for name, shard in places.items() if name not in found or found[name][0] != shard]
    if lost:
        raise RestoreError(
            f"The files of an index hold the weights that it lists. `{index}` lists {quote(lost)}, which "
            f"{'is' if len(lost) == 1 else 'are'} not where it says. Copy the index and all its files again."
        )
    return WeightFile(str(index), "safetensors", _weights(found[name][1] for name in places))


def _safetensors(path: Path) -> Iterator[Tensor]:
    try:
        with safe_open(path, "numpy") as file:
            known = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            for name in sorted(known):
                dtype = _DTYPES[str(known[name].get_dtype())]
                yield Tensor(name, tuple(known[name].get_shape()), dtype, partial(_read_safetensor, path, name))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_safetensor(path: Path, name: str) -> np.ndarray:
    """Reads one array; the file is opened for it alone, so that what was mapped into memory is let go at once."""
    try:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def refuse_pickle(path: Path) -> WeightFile:
    """Refuses what PyTorch's `torch.save` wrote, and any other pickle.

    Raises:
        RestoreError: Always.
    """
    raise RestoreError(
        f"Weights are plain arrays. `{path}` is a Python pickle, as `torch.save` writes it, which could run code and "
        "is not read. Save the weights anew: `safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`."
    )


# npz


def read_npz(path: Path) -> WeightFile:
    """Reads a file that `numpy.savez` wrote; the two bytes as which NumPy saves bfloat16 are read as bfloat16.

    Raises:
        RestoreError: It holds Python objects, which could run code when they are read.
    """
    with zipfile.ZipFile(path) as archive:
        known = {name.removesuffix(".npy"): _npy_header(archive, name) for name in archive.namelist()}
    objects = [name for name, (_, dtype) in known.items() if dtype.hasobject]
    if objects:
        raise RestoreError(
            f"Weights are plain arrays. `{path}` holds Python objects, which could run code and are not read: "
            f"{quote(objects)}. Save arrays alone: `numpy.savez(path, **{{name: array}})`."
        )
    arrays = {name: (shape, _npz_type(dtype)) for name, (shape, dtype) in known.items() if dtype.kind in "biufcV"}
    return WeightFile(
        str(path),
        "npz",
        _weights(Tensor(name, shape, dtype, partial(_read_npy, path, name)) for name, (shape, dtype) in arrays.items()),
    )


def _npy_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read: Callable[..., Any] = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        promised, there = int(np.prod(shape, dtype=object)) * dtype.itemsize, archive.getinfo(member).file_size
        if not dtype.hasobject and promised != there - file.tell():
            raise ValueError(f"`{member}` promises {promised:,} bytes and holds {there - file.tell():,}")
    return shape, dtype


def _npz_type(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype == np.dtype("V2") else dtype.name


def _read_npy(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


# Both


def _weights(tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
    """Leaves out bookkeeping, and lets a model know `encoder.0.weight` as `encoder/0/weight` too."""
    every = {tensor.name.replace(".", "/"): tensor for tensor in tensors}
    kept = {path: tensor for path, tensor in every.items() if not _is_bookkeeping(path, tensor, every)}
    return tuple(
        Tensor(t.name, t.shape, t.dtype, t.read, aliases=() if path == t.name else (path,)) for path, t in kept.items()
    )


def _is_bookkeeping(path: str, tensor: Tensor, every: Mapping[str, Tensor]) -> bool:
    counts = not tensor.shape and is_counter(path)
    return counts or is_random_state(path) or is_slot(path, every) or in_books(path.split("/"))
