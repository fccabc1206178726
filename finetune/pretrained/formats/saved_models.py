"""Weights in SavedModels, of Keras 3, tf_keras, bare modules and TF1; the network itself is not loaded."""

from dataclasses import replace
from pathlib import Path

from finetune.errors import RestoreError
from finetune.pretrained.formats.checkpoints import read_checkpoint
from finetune.pretrained.formats.weight_file import WeightFile


def read_saved_model(path: Path) -> WeightFile:
    """Reads the variables of the SavedModel that `saved_model.pb` belongs to.

    Raises:
        RestoreError: It has no variables, or its data are missing.
    """
    index = path.parent / "variables" / "variables.index"
    if not index.is_file():
        raise RestoreError(
            f"A SavedModel keeps its weights in `variables/variables.index`. `{path.parent}` has none: either it was "
            "copied without this folder, or its graph holds the weights as constants, which cannot be fine-tuned."
        )
    return replace(read_checkpoint(index), path=str(path.parent), kind="saved-model")
