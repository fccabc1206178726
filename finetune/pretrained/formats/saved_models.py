"""Reads weights from SavedModels, of Keras 3, tf_keras, plain modules and TF1, without loading the network.

Loading a SavedModel runs its graph's initializers, takes seconds and needs the custom operations of whoever saved it.
The variables are in a checkpoint of their own in the folder `variables`, which can be read alone.
"""

from dataclasses import replace
from pathlib import Path

from finetune.errors import RestoreError
from finetune.pretrained.formats.checkpoints import read_checkpoint
from finetune.pretrained.formats.weight_file import WeightFile


def read_saved_model(path: Path) -> WeightFile:
    """Reads the variables of a SavedModel.

    Args:
        path: The `saved_model.pb` in the SavedModel's folder.

    Raises:
        RestoreError: The SavedModel has no variables, or its data files are missing.
    """
    index = path.parent / "variables" / "variables.index"
    if not index.is_file():
        raise RestoreError(
            f"A SavedModel keeps its weights in `variables/variables.index`. `{path.parent}` has none: either it was "
            "copied without this folder, or its graph holds the weights as constants, which cannot be fine-tuned."
        )
    # The checkpoint names itself `variables/variables`; the user knows the SavedModel's folder.
    return replace(read_checkpoint(index), path=str(path.parent), kind="saved-model")
