"""Reads weights that are spread over several files, with a JSON index that says which file holds which weight.

Hugging Face's `model.safetensors.index.json` and Keras' `model.weights.json` share one layout:
`{"metadata": ..., "weight_map": {name of a weight: name of a file}}`. Keras maps each object to a list of files.
"""

import json
from pathlib import Path
from typing import Any

from finetune.errors import RestoreError, quote
from finetune.files.size_limits import check_header
from finetune.pretrained.formats.keras_files import read_keras_shards
from finetune.pretrained.formats.safetensors_and_npz import read_safetensors_shards
from finetune.pretrained.formats.weight_file import WeightFile


def read_shards(path: Path) -> WeightFile:
    """Reads the weights that an index lists, from safetensors or from Keras weights in HDF5.

    Args:
        path: The index. Its files must be in the same folder.

    Raises:
        RestoreError: A file is missing, is in another folder, lacks a weight that the index lists, or is of another
            format.
        FinetuneError: The index is too large.
    """
    check_header(path, path.stat().st_size)
    # Safetensors: a file name for each weight. Keras: for each object, a file name or a list of them.
    weight_map = json.loads(path.read_bytes())["weight_map"]
    file_lists = (names if type(names) is list else [names] for names in weight_map.values())
    shards = list(dict.fromkeys(name for names in file_lists for name in names))
    _require_shards(path, shards)
    files = {shard: path.parent / shard for shard in shards}
    # The names decide here, and the readers then check the content: an index of `.bin` files is one of pickles.
    if all(shard.endswith(".h5") for shard in shards):
        return read_keras_shards(path, list(files.values()))
    if all(shard.endswith(".safetensors") for shard in shards):
        return read_safetensors_shards(path, weight_map, files)
    raise RestoreError(
        f"Weights in several files must be safetensors or Keras' `.h5`. `{path}` names {quote(shards)}. Save them as "
        "safetensors."
    )


def _require_shards(index: Path, shards: list[Any]) -> None:
    """Refuses names that are not plain file names (`../x`, `/etc/x`, numbers), and files that do not exist."""
    outside = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if outside:
        raise RestoreError(
            f"An index may only name files in its own folder. `{index}` names {quote(outside)}. Put all files into "
            "one folder, and their plain names into the index."
        )
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise RestoreError(
            f"Weights in several files need all of these files. `{index}` names {len(shards)}, of which "
            f"{quote(missing)} {'is' if len(missing) == 1 else 'are'} missing. Copy them to `{index.parent}`."
        )
