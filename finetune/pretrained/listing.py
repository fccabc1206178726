"""Lists what a weight file holds, as plain data; `finetune inspect` prints it."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes NumPy know `bfloat16` by name
import numpy as np

from finetune.pretrained.formats.readers import read_tensors
from finetune.pretrained.formats.weight_file import StoredTensor


def list_weights(path: str | Path) -> dict[str, Any]:
    """Lists the weights in a file, and what else it holds, without reading values.

    Args:
        path: Anything that `finetune.pretrained.formats.readers.read_weights` takes.

    Returns:
        `path`, `kind`, `weights` and `others` (each a list of tensors with `name`, `role`, `of`, `shape`, `dtype`,
        `parameters` and `bytes`; `of` is the weight that a slot or an average belongs to, where the file tells). Of the
        weights the sums `parameters` and `bytes`, and under `dtypes` how many there are of each type; under `roles` how
        many tensors there are of each role. For a SavedModel also `operations`, how often each operation is in its
        graph, and `outside`, what those reach that reach files, other machines, Python or the process.

    Raises:
        RestoreError: As `finetune.pretrained.formats.readers.read_tensors` does.
    """
    weight_file = read_tensors(path)
    graph = _operations(path) if weight_file.kind == "saved-model" else {}
    weights, others = (list(map(_row, tensors)) for tensors in (weight_file.tensors, weight_file.others))
    return {
        "path": weight_file.path,
        "kind": weight_file.kind,
        "weights": weights,
        "others": others,
        "parameters": sum(row["parameters"] for row in weights),
        "bytes": sum(row["bytes"] for row in weights),
        "dtypes": dict(Counter(row["dtype"] for row in weights)),
        "roles": dict(Counter(row["role"] for row in [*weights, *others])),
        **graph,
    }


def _operations(path: str | Path) -> dict[str, Any]:
    """Lists the operations in the graph of a SavedModel, which is not run."""
    from finetune.models.graph_operations import read_operations  # TensorFlow is loaded by now
    from finetune.models.hub_handles import resolve_handle

    is_graph = Path(path).name in ("saved_model.pb", "saved_model.pbtxt")
    graph = read_operations(resolve_handle(Path(path).parent if is_graph else path))
    return {"operations": dict(graph.counts), "outside": dict(graph.outside)}


def _row(tensor: StoredTensor) -> dict[str, Any]:
    count = prod(tensor.shape)
    try:
        size = count * np.dtype(tensor.dtype).itemsize
    except TypeError:  # texts and tables of TensorFlow have no fixed size
        size = 0
    return {
        "name": tensor.name,
        "role": tensor.role,
        "of": tensor.of,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "parameters": count,
        "bytes": size,
    }
