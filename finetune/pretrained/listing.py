"""What a file of weights holds, as plain data."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - lets NumPy know `bfloat16` by name
import numpy as np

from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.formats.weight_file import Tensor


def list_weights(path: str | Path) -> dict[str, Any]:
    """Lists what `read_weights` finds in a file, without reading the values.

    Args:
        path: Anything that `finetune.pretrained.formats.readers.read_weights` takes.

    Returns:
        `path`, `kind`, `weights` (each with `name`, `shape`, `dtype`, `parameters` and `bytes`), and of all together
        the `parameters`, the `bytes` and, under `dtypes`, how many weights are of each type.

    Raises:
        RestoreError: As `read_weights` does.
    """
    found = read_weights(path)
    weights = [_row(tensor) for tensor in found.tensors]
    return {
        "path": found.path,
        "kind": found.kind,
        "weights": weights,
        "parameters": sum(row["parameters"] for row in weights),
        "bytes": sum(row["bytes"] for row in weights),
        "dtypes": dict(Counter(row["dtype"] for row in weights)),
    }


def _row(tensor: Tensor) -> dict[str, Any]:
    count = prod(tensor.shape)
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "parameters": count,
        "bytes": count * np.dtype(tensor.dtype).itemsize,
    }
