"""From the `restore` of a recipe to restored weights."""

import keras

from finetune.groups.layer_tree import LayerTree
from finetune.pretrained.restore import RestoreReport, restore
from finetune.pretrained.transforms import Transform
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe


@located_at("restore", "from")
def restore_weights(
    recipe: Recipe, model: keras.Model, tree: LayerTree | None = None, *, verify: bool = True
) -> RestoreReport | None:
    """Restores the pretrained weights that a recipe names.

    Args:
        recipe: The recipe.
        model: The model, built.
        tree: Its layer tree, where that is known already.
        verify: Whether outputs are compared with `restore.verify`, where the recipe has it.

    Returns:
        What was restored; `None` for a recipe without `restore`.

    Raises:
        RestoreError: The file does not fit the model, or the outputs differ.
    """
    if recipe.restore is None:
        return None
    # What the recipe leaves out has the default of `restore` and of `Transform`.
    written = {name: value for name, value in recipe.restore if value is not None}
    source = resolve_path(recipe, written.pop("source"))
    rules = [{name: value for name, value in rule if value is not None} for rule in written.pop("transform")]
    reference = written.pop("verify", None)
    if reference and verify:
        written["verify"] = resolve_path(recipe, reference)
    return restore(model, source, tree=tree, transform=[Transform(**rule) for rule in rules], **written)
