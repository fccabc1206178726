"""The tensors in a saved model, by their checksums: read with h5py alone, without building the model."""

import hashlib
import tempfile
import zipfile
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from finetune.errors import FinetuneError, reason
from finetune.files.zip_archives import zip_archive

_WEIGHTS = "model.weights.h5"


def checksums_of_model(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of each tensor of a `.keras` file by its name, slots of the optimizer included.

    Args:
        path: The file.

    Raises:
        FinetuneError: It is damaged, or no such file.
    """
    import h5py  # here: it takes a quarter of a second, and `finetune --help` imports this module

    checksums: dict[str, str] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values = item[()]
            digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
            digest.update(values.tobytes())
            checksums[name] = digest.hexdigest()

    try:
        with zip_archive(path) as archive, tempfile.TemporaryFile() as weights:
            with archive.open(_WEIGHTS) as packed:
                copyfileobj(packed, weights)
            with h5py.File(weights, "r") as file:
                file.visititems(note)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FinetuneError(
            f"The weights of a run are in its `model.keras`. `{path}` cannot be read: {reason(error)}. Restore it "
            "from a copy, or run the recipe again."
        ) from error
    return checksums
