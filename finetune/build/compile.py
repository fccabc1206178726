"""From the `train` of a recipe to a compiled model: its loss, its metrics and how Keras calls a step."""

import inspect
from contextlib import suppress
from typing import Any

import keras

from finetune.errors import RecipeError, did_you_mean, reason
from finetune.recipe.loader import place_of
from finetune.recipe.optimizers import Named
from finetune.recipe.schema import Recipe

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras chooses the class by the shape of the targets
_NOT_NAMES = ("get", "serialize", "deserialize", "loss", "metric")  # in Keras' modules, but neither losses nor metrics


def compile_model(recipe: Recipe, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles a model with the loss and the metrics of a recipe.

    Args:
        recipe: The recipe.
        model: The model. Freeze it first: Keras notes at `compile` which variables are trainable.
        optimizer: The optimizer.

    Raises:
        RecipeError: Keras knows no such loss or metric, or it does not accept its arguments.
    """
    train = recipe.train
    model.compile(
        optimizer=optimizer,
        loss=_keras_object(recipe, keras.losses, train.loss, "loss"),
        metrics=[
            _keras_object(recipe, keras.metrics, metric, "metrics", index) for index, metric in enumerate(train.metrics)
        ],
        steps_per_execution=1 if train.steps_per_execution == "auto" else train.steps_per_execution,
        jit_compile=train.jit_compile,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
    )


def _keras_object(recipe: Recipe, module: Any, named: Named, *keys: str | int) -> Any:
    """Returns what `compile` accepts for a loss or a metric.

    That is the name as it is written where Keras knows it, because the logs then have this name; else an object of
    the class with that name, however its words are separated: `mean_io_u`, `mean_iou`, `MeanIoU`.
    """
    about = f"{place_of(recipe, 'train', *keys)}: `train.{keys[0]}: {named.name}`"
    plain = named.name.lower().replace("_", "")
    classes = {name.lower(): value for name, value in vars(module).items() if inspect.isclass(value)}
    by_shape = _BY_SHAPE if module is keras.metrics else ()
    if not named.arguments and plain not in _NOT_NAMES:
        with suppress(ValueError, TypeError):
            if named.name in by_shape or module.get(named.name):
                return named.name
    if plain not in classes or plain in _NOT_NAMES:
        known = [name for name, value in vars(module).items() if callable(value) and name.lower() not in _NOT_NAMES]
        raise RecipeError(f"{about} is not a name that Keras knows.{did_you_mean(named.name, [*by_shape, *known])}")
    try:
        return classes[plain](**named.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{about} does not accept its arguments. Keras says: {reason(error)}.") from error
