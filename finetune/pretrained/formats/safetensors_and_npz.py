"""Reads weights from files of named arrays: safetensors (one file or several) and NumPy's npz. Refuses pickles."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.errors import RestoreError, quote
from finetune.files.npy_headers import read_npy_header
from finetune.files.size_limits import check_header, check_zip
from finetune.files.zip_archives import zip_archive
from finetune.pretrained.formats.tensor_roles import split_by_role, with_roles
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile

_DTYPES = {  # type names of safetensors -> of NumPy and ml_dtypes
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    "C64": "complex64",
}


# safetensors


def read_safetensors(path: Path) -> WeightFile:
    """Reads one safetensors file. Only the header is read now; each weight is read later from its offset."""
    return _weight_file(path, "safetensors", _safetensors(path))


def read_safetensors_shards(index: Path, weight_map: Mapping[str, str], files: Mapping[str, Path]) -> WeightFile:
    """Reads several safetensors files.

    Args:
        index: The JSON file that lists them.
        weight_map: Name of the file that holds each weight, by the weight's name.
        files: Paths of these files, by their names.

    Raises:
        RestoreError: A weight is not in the file that the index names for it.
    """
    held = {tensor.name: (shard, tensor) for shard, path in files.items() for tensor in _safetensors(path)}
    lost = [name for name, shard in weight_map.items() if name not in held or held[name][0] != shard]
    if lost:
        raise RestoreError(
            f"The files of an index must hold the weights that it lists. `{index}` lists {quote(lost)}, which "
            f"{'is' if len(lost) == 1 else 'are'} not where it says. Copy the index and all its files again."
        )
    return _weight_file(index, "safetensors", (held[name][1] for name in weight_map))


def _safetensors(path: Path) -> Iterator[StoredTensor]:
    with path.open("rb") as opened:
        check_header(path, int.from_bytes(opened.read(8), "little"))
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            for name in sorted(slices):  # the header has no order that could be relied on
                dtype = _DTYPES[str(slices[name].get_dtype())]
                shape = tuple(slices[name].get_shape())
                # `get_tensor` looks the type up in NumPy, which has no float8 (safetensors 0.8).
                is_float8 = dtype.startswith("float8")
                read = partial(_read_float8, path, name) if is_float8 else partial(_read_safetensor, path, name)
                yield StoredTensor(name, shape, dtype, read)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_safetensor(path: Path, name: str) -> np.ndarray:
    # `safe_open` maps the file into memory. Opening it again for each weight lets go of the pages already read, so
    # that the memory in use is that of a few weights and not of the file.
    try:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_float8(path: Path, name: str) -> np.ndarray:
    # The file: length of the header (8 bytes), header in JSON, values. `safe_open` has checked the offsets.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        return np.frombuffer(file.read(end - start), _DTYPES[entry["dtype"]]).reshape(entry["shape"])


def refuse_pickle(path: Path) -> WeightFile:
    """Refuses what PyTorch's `torch.save` wrote, and any other pickle: reading a pickle runs the code in it.

    Raises:
        RestoreError: Always.
    """
    raise RestoreError(
        f"Weights must be plain arrays. `{path}` is a Python pickle, as `torch.save` writes it, which could run code "
        "and is not read. Save the weights again: "
        "`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`."
    )


# npz


def read_npz(path: Path) -> WeightFile:
    """Reads a file that `numpy.savez` wrote. Only the headers of the arrays are read now.

    NumPy does not know bfloat16 and saves it as plain two-byte values (`V2`); these are read as bfloat16. Arrays that
    hold neither numbers nor bfloat16 (texts, dates, records) are not weights.

    Raises:
        RestoreError: The file holds Python objects, which could run code when they are read.
        FinetuneError: It unpacks to too much.
    """
    check_zip(path)
    with zip_archive(path) as archive:
        headers = {name.removesuffix(".npy"): _npy_header(archive, name) for name in archive.namelist()}
    objects = [name for name, (_, dtype) in headers.items() if dtype.hasobject]
    if objects:
        raise RestoreError(
            f"Weights must be plain arrays. `{path}` holds Python objects, which could run code and are not read: "
            f"{quote(objects)}. Save arrays alone: `numpy.savez(path, **{{name: array}})`."
        )

    def dtype_name(dtype: np.dtype[Any]) -> str:
        return "bfloat16" if dtype == "V2" else "string" if dtype.kind in "SU" else dtype.name

    tensors = (
        StoredTensor(name, shape, dtype_name(dtype), partial(_read_npy, path, name))
        for name, (shape, dtype) in headers.items()
    )
    return _weight_file(path, "npz", tensors)


def _npy_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as file:
        return read_npy_header(file, archive.getinfo(member).file_size, member)


def _read_npy(path: Path, name: str) -> np.ndarray:
    with zip_archive(path) as archive, archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array


# Both


def _weight_file(file: Path, kind: str, tensors: Iterable[StoredTensor]) -> WeightFile:
    """Gives the tensors their roles, and `encoder.0.weight` of PyTorch the alias `encoder/0/weight`."""
    by_path = {tensor.name.replace(".", "/"): tensor for tensor in tensors}
    named = [
        tensor if path == tensor.name else replace(tensor, aliases=(path,))
        for path, tensor in zip(by_path, with_roles(by_path), strict=True)
    ]
    return WeightFile(str(file), kind, *split_by_role(named))
