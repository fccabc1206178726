"""The model of a run that is not finished: built of its recipe, with the weights of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from finetune.build.data import precision
from finetune.build.model import build_model_and_examples
from finetune.errors import FinetuneError
from finetune.inference.checkpoint_choice import ChosenWeights
from finetune.recipe.loader import load_recipe
from finetune.training.checkpoints.slot_names import weight_names
from finetune.training.snapshot import holder


def model_of_recipe(folder: Path, *, allow_code: Sequence[str] = ()) -> keras.Model:
    """Builds the network of a run, with fresh or pretrained weights.

    Args:
        folder: The run folder.
        allow_code: Code that the recipe names and that may run.

    Raises:
        FinetuneError: The data or the files of the network are not here, or code is not allowed.
    """
    recipe = load_recipe(folder / "recipe.yaml", allow_code=allow_code)
    with precision(recipe):
        return build_model_and_examples(recipe).model


def put_weights(model: keras.Model, chosen: ChosenWeights) -> None:
    """Gives a model the weights of a checkpoint.

    Args:
        model: The network of the run.
        chosen: The weights.

    Raises:
        FinetuneError: They are of another network; nothing is changed then.
    """
    if chosen.arrays is None:
        try:
            model.load_weights(chosen.file)
        except (ValueError, OSError) as error:
            raise _of_another(chosen, str(error).splitlines()[0]) from error
        return
    if chosen.is_in_order:
        variables: dict[str, Any] = {str(place): variable for place, variable in enumerate(model.weights)}
    else:
        names = weight_names(model)
        variables = {names[id(holder(variable))]: variable for variable in model.variables}
    for name, variable in variables.items():
        if name not in chosen.arrays:
            raise _of_another(chosen, f"it has no `{getattr(variable, 'path', name)}`")
        if tuple(variable.shape) != chosen.arrays[name].shape:
            raise _of_another(
                chosen,
                f"`{getattr(variable, 'path', name)}` has shape {chosen.arrays[name].shape} in it and "
                f"{tuple(variable.shape)} in the network",
            )
    for name, variable in variables.items():
        variable.assign(chosen.arrays[name])


def _of_another(chosen: ChosenWeights, problem: str) -> FinetuneError:
    return FinetuneError(
        f"The weights of a checkpoint are those of the network of its run. `{chosen.file}` does not fit: "
        f"{problem.rstrip('.')}. The code or the files of the network have changed since: bring them back."
    )
