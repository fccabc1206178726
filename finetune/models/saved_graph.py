"""A SavedModel without its weights as text, small enough for the config of a layer.

`tf.saved_model.load` fails without a file of variables, so the text has one: zeros compress to almost nothing.
"""

import base64
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.files.temporary_folders import temporary_folder
from finetune.models.unpacking import unpack

_VARIABLES = "variables"


def pack_graph(folder: str) -> str:
    """Returns a SavedModel as base64 text: graph, tables and assets unchanged, the values of float variables as zeros.

    The same SavedModel always gives the same text.

    Args:
        folder: The folder of the SavedModel; any address that TensorFlow can read.
    """
    with temporary_folder() as scratch:
        archive = scratch / "graph.zip"
        _save_zeros(f"{folder}/{_VARIABLES}/{_VARIABLES}", f"{scratch}/{_VARIABLES}")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            files = [Path(top, name) for top, _, names in tf.io.gfile.walk(folder) for name in names]
            for name in sorted(str(path.relative_to(folder)) for path in files):
                if not name.startswith(f"{_VARIABLES}/"):
                    file.writestr(_entry(name), tf.io.gfile.GFile(f"{folder}/{name}", "rb").read())
            for path in sorted(scratch.glob(f"{_VARIABLES}.*")):
                file.writestr(_entry(f"{_VARIABLES}/{path.name}"), path.read_bytes())
        return base64.b64encode(archive.read_bytes()).decode("ascii")


def unpack_graph(text: str, cache: Path) -> str:
    """Writes the SavedModel that `pack_graph` turned into text to a folder below `cache`, and returns that folder."""
    data = base64.b64decode(text, validate=True)
    with temporary_folder() as scratch:
        archive = scratch / f"{sha256(data).hexdigest()}.zip"
        archive.write_bytes(data)
        return str(unpack(archive, cache, trusted=True))  # zeros compress a thousandfold


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980 whatever the day, so that the same graph gives the same text
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _save_zeros(prefix: str, target: str) -> None:
    """Writes the checkpoint at `prefix` to `target` with zeros for its floating-point values."""
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    values = [_zeroed(reader, name) for name in names]
    tf.raw_ops.SaveV2(prefix=target, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)


def _zeroed(reader: Any, name: str) -> np.ndarray:
    kind = reader.get_variable_to_dtype_map()[name]
    if not kind.is_floating and not kind.is_complex:
        return reader.get_tensor(name)  # the object graph (a string), tables, counters: loading needs them
    return np.zeros(reader.get_variable_to_shape_map()[name], kind.as_numpy_dtype)
