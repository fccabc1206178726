"""From the `restore` of a recipe to restored weights."""

import keras

from finetune.pretrained.restore import RestoreReport, restore
from finetune.pretrained.transforms import Transform
from finetune.recipe.loader import resolve_path
from finetune.recipe.restore import TransformRule
from finetune.recipe.schema import Recipe


def restore_weights(recipe: Recipe, model: keras.Model, *, verify: bool = True) -> RestoreReport | None:
    """Restores the pretrained weights that the recipe names, if any, and compares outputs where it asks for that."""
    wanted = recipe.restore
    if wanted is None:
        return None
    return restore(
        model,
        resolve_path(recipe, wanted.source),
        exclude=wanted.exclude,
        rename=wanted.rename,
        transform=[_transform(rule) for rule in wanted.transform],
        allow_missing=wanted.allow_missing,
        allow_unused=wanted.allow_unused,
        min_coverage=wanted.min_coverage or 0.0,
        verify=resolve_path(recipe, wanted.verify) if verify and wanted.verify else None,
        **{name: getattr(wanted, name) for name in ("verify_rtol", "verify_atol") if getattr(wanted, name) is not None},
    )


def _transform(rule: TransformRule) -> Transform:
    """Takes what the rule says, and the defaults of `Transform` for the rest."""
    return Transform(**{name: value for name, value in rule if value is not None})
