"""From the `data.augment` of a recipe to the layers that change its training rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.augmentation import Augmentation, augmented_input
from finetune.data.examples import Examples
from finetune.data.row_checks import unreadable_rows_named
from finetune.errors import DataError, FinetuneError, RecipeError, quote, reason
from finetune.keras_private import fresh_names
from finetune.recipe.augment import AUGMENT_LAYERS, MIXING_LAYERS
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe

_FOR_ANY_SHAPE = ("Dropout", "GaussianDropout", "GaussianNoise")


def with_augmentation(recipe: Recipe, examples: Examples) -> Examples:
    """Adds the layers of `data.augment` to examples; returns them as they are where there are none.

    Raises:
        RecipeError: A layer does not accept its arguments, or does not fit the rows.
    """
    written = recipe.data.augment
    if not written:
        return examples
    try:
        with unreadable_rows_named(examples):
            leaf, first = augmented_input(
                examples.x_train, images=any(each.layer not in _FOR_ANY_SHAPE for each in written)
            )
        if any(each.layer in MIXING_LAYERS for each in written) and len(tf.nest.flatten(examples.x_train)) > 1:
            inputs = len(tf.nest.flatten(examples.x_train))
            raise DataError(
                f"blends whole rows with {quote(MIXING_LAYERS)}, and can blend a single input. The data have {inputs}. "
                "Remove the layer"
            )
    except FinetuneError as error:
        raise RecipeError(f"{place_of(recipe, 'data', 'augment')}: `data.augment` {error}.") from None
    decoded = recipe.data.images or recipe.data.table  # whose range the recipe says
    values = recipe.data.value_range if decoded else _value_range(first)
    layers = [_layer(recipe, index, first, values) for index in range(len(written))]
    augmentation = Augmentation(
        [layer for layer in layers if type(layer).__name__ not in MIXING_LAYERS],
        [layer for layer in layers if type(layer).__name__ in MIXING_LAYERS],
        leaf,
        first.dtype,
        recipe.seed,
    )
    about: dict[str, Any] = {"augment": [each.model_dump() for each in written]}
    if any("value_range" in AUGMENT_LAYERS[each.layer] for each in written):
        about["augment_value_range"] = list(values) if values else None
    return replace(examples, augmentation=augmentation, source={**examples.source, **about})


def _value_range(first: tf.Tensor) -> tuple[float, float] | None:
    """Returns what black and white are in some images; `None` where the values do not tell."""
    low, high = float(np.min(first)), float(np.max(first))
    if low < 0 or high > 255:
        return (-1.0, 1.0) if low >= -1 and high <= 1 else None
    return (0.0, 1.0) if high <= 1 and first.dtype.is_floating else (0.0, 255.0)


def _layer(recipe: Recipe, index: int, first: Any, values: Sequence[float] | None) -> keras.layers.Layer:
    """Makes a layer, and calls it on a row."""
    each = recipe.data.augment[index]
    arguments, place = dict(each.arguments), place_of(recipe, "data", "augment", index)
    about = f"{place}: `data.augment.{index}.layer: {each.layer}`"
    if "value_range" in AUGMENT_LAYERS[each.layer] and "value_range" not in arguments:
        if values is None:
            raise RecipeError(
                f"{about} needs `value_range`, what black and white are in the images. They hold "
                f"{float(np.min(first)):.4g} to {float(np.max(first)):.4g}, so it is neither [0, 255], [0, 1] nor "
                "[-1, 1]."
            )
        arguments["value_range"] = values
    try:
        with fresh_names():
            # float32 also under mixed precision: the rows are changed before the network computes with them.
            layer = getattr(keras.layers, each.layer)(**arguments, seed=recipe.seed, dtype="float32")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise RecipeError(f"{about} does not accept its arguments. Keras says: {reason(error)}.") from None
    row = first[:1]
    try:
        data = {"images": row, "labels": tf.zeros((1, 1))} if each.layer in MIXING_LAYERS else row
        made = layer(tf.nest.map_structure(lambda part: tf.cast(part, "float32"), data), training=True)
    except Exception as error:  # layers raise errors of many classes over shapes and arguments that they cannot take
        raise RecipeError(f"{about} cannot change the images. Keras says: {reason(error)}.") from None
    shape = tuple((made["images"] if isinstance(made, dict) else made).shape[1:])
    if shape != tuple(row.shape[1:]):
        raise RecipeError(
            f"{about} must keep the size of the rows, since rows to test on have it, too. It makes {shape} of "
            f"{tuple(row.shape[1:])}. Use `RandomZoom` or `RandomTranslation`, or put the layer into the network."
        )
    return layer
