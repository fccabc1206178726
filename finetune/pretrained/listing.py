"""Lists what a weight file holds, as plain data; `finetune inspect` prints it."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes NumPy know `bfloat16` by name
import numpy as np

from finetune.pretrained.formats.readers import read_weights


def list_weights(path: str | Path) -> dict[str, Any]:
    """Lists the weights in a file without reading their values.

    Args:
        path: Anything that `finetune.pretrained.formats.readers.read_weights` takes.

    Returns:
        `path`, `kind`, `weights` (each with `name`, `shape`, `dtype`, `parameters` and `bytes`), the sums `parameters`
        and `bytes`, and under `dtypes` how many weights there are of each type.

    Raises:
        RestoreError: As `read_weights` does.
    """
    weight_file = read_weights(path)
    weights = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "parameters": prod(tensor.shape),
            "bytes": prod(tensor.shape) * np.dtype(tensor.dtype).itemsize,
        }
        for tensor in weight_file.tensors
    ]
    return {
        "path": weight_file.path,
        "kind": weight_file.kind,
        "weights": weights,
        "parameters": sum(row["parameters"] for row in weights),
        "bytes": sum(row["bytes"] for row in weights),
        "dtypes": dict(Counter(row["dtype"] for row in weights)),
    }
