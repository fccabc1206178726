"""Weights in several files, with an index in JSON that tells which file holds which."""

import json
from pathlib import Path
from typing import Any

from finetune.errors import RestoreError, quote
from finetune.pretrained.formats.safetensors_and_npz import read_safetensors_shards
from finetune.pretrained.formats.keras_files import read_keras_shards
from finetune.pretrained.formats.weight_file import WeightFile

_MOST_BYTES = 100_000_000


def read_shards(path: Path) -> WeightFile:
    """Reads the weights that an index names: safetensors, or Keras weights in HDF5.

    Raises:
        RestoreError: A file is missing, stands elsewhere, lacks what the index promises, or holds no weights.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"an index of more than {_MOST_BYTES:,} bytes is none")
    places = json.loads(path.read_bytes())["weight_map"]
    shards = list(dict.fromkeys(name for held in places.values() for name in (held if type(held) is list else [held])))
    _require_shards(path, shards)
    files = {shard: path.parent / shard for shard in shards}
    if all(shard.endswith(".h5") for shard in shards):
        return read_keras_shards(path, list(files.values()))
    if all(shard.endswith(".safetensors") for shard in shards):
        return read_safetensors_shards(path, places, files)
    raise RestoreError(
        f"Weights in several files are safetensors or Keras' `.h5`. `{path}` names {quote(shards)}. Save them as "
        "safetensors."
    )


def _require_shards(index: Path, shards: list[Any]) -> None:
    strange = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if strange:
        raise RestoreError(
            f"An index names files that stand beside it. `{index}` names {quote(strange)}. Put all into one folder."
        )
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise RestoreError(
            f"Weights in several files need all of them. `{index}` names {len(shards)}, of which "
            f"{quote(missing)} {'is' if len(missing) == 1 else 'are'} not there. Copy them to `{index.parent}`."
        )
