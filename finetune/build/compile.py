"""From the `train` of a recipe to a compiled model: its loss, its metrics and how Keras calls a step."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count
from typing import Any

import keras
import numpy as np

from finetune.build.data import steps_per_epoch
from finetune.data.examples import Examples
from finetune.errors import DataError, RecipeError, did_you_mean, reason
from finetune.keras_private import fresh_names
from finetune.models.output_activation import PROBABILITIES, output_activations
from finetune.recipe.loader import place_of
from finetune.recipe.optimizers import Named
from finetune.recipe.schema import Recipe
from finetune.training.fitted_metrics import FittedMetric, Task, accuracy_of, fit_metric, notes_on, task_of, try_metric
from finetune.training.loss_advice import takes_logits
from finetune.training.try_examples import Trial

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras chooses the class by the shape of the targets
_NOT_NAMES = ("get", "serialize", "deserialize", "loss", "metric")  # in Keras' modules, but neither losses nor metrics


def compile_model(
    recipe: Recipe, model: keras.Model, optimizer: keras.optimizers.Optimizer, examples: Examples, trial: Trial
) -> tuple[str, ...]:
    """Compiles a model with the loss and the metrics of a recipe.

    Args:
        recipe: The recipe.
        model: The model. Freeze it first: Keras notes at `compile` which variables are trainable.
        optimizer: The optimizer.
        examples: The examples, whose targets the metrics must fit.
        trial: A few of their rows, with the outputs of the model for them.

    Returns:
        Sentences for the user about metrics whose meaning may surprise.

    Raises:
        RecipeError: Keras knows no such loss or metric, it does not accept its arguments, or a metric does not fit the
            targets.
    """
    train, steps = recipe.train, steps_per_epoch(recipe, examples)
    loss = _keras_object(recipe, keras.losses, train.loss, "loss")
    logits = bool(takes_logits(loss)) and not set(output_activations(model)) & set(PROBABILITIES)
    targets = examples.y_train if isinstance(examples.y_train, np.ndarray) else trial.y
    task = task_of(targets, trial.outputs, loss=train.loss.name, logits=logits)
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=list(_metrics(recipe, task, trial)),
        # More steps than an epoch has would share no more calls, and Keras' own loop writes each of them into a graph.
        steps_per_execution=min(1 if train.steps_per_execution == "auto" else train.steps_per_execution, steps),
        jit_compile=train.jit_compile,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
    )
    notes = [notes_on(metric.name, metric.arguments, task, train.loss.name) for metric in train.metrics] if task else []
    return tuple(filter(None, notes))


def _metrics(recipe: Recipe, task: Task | None, trial: Trial) -> Iterator[Any]:
    """Yields the metrics as `compile` accepts them: by name where Keras makes the right one of it, else objects."""
    used: set[str] = set()
    for index, named in enumerate(recipe.train.metrics):
        metric = _keras_object(recipe, keras.metrics, named, "metrics", index)
        if task:
            try:
                metric = _fitted(metric, named, task, trial)
            except DataError as error:
                place = place_of(recipe, "train", "metrics", index)
                raise RecipeError(f"{place}: metric `{named.name}` {error}") from error
        if isinstance(metric, str):
            used.add(metric)
        else:
            candidates = chain([metric.name], (f"{metric.name}_{number}" for number in count(1)))
            metric.name = next(name for name in candidates if name not in used)
            used.add(metric.name)
        yield metric


def _fitted(metric: Any, named: Named, task: Task, trial: Trial) -> Any:
    """Returns a metric that is right for the task; the name alone where Keras makes just that of it."""
    plain = named.name.lower().replace("_", "")
    by_shape = plain in ("accuracy", "acc")
    make: Any = accuracy_of(task) if by_shape else _classes(keras.metrics).get(plain) or keras.metrics.get(named.name)
    try:
        with fresh_names():
            fitted = fit_metric(named.name, make, named.arguments, task)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"does not accept its arguments. Keras says: {reason(error)}.") from error
    try_metric(fitted, trial.y, trial.outputs)
    if isinstance(metric, str):
        if not task.probabilities and not isinstance(fitted, FittedMetric):
            return metric
        fitted.name = metric
    return fitted


def _classes(module: Any) -> dict[str, type]:
    return {name.lower(): value for name, value in vars(module).items() if inspect.isclass(value)}


def _keras_object(recipe: Recipe, module: Any, named: Named, *keys: str | int) -> Any:
    """Returns what `compile` accepts for a loss or a metric.

    That is the name as it is written where Keras knows it, because the logs then have this name; else an object of
    the class with that name, however its words are separated: `mean_io_u`, `mean_iou`, `MeanIoU`.
    """
    about = f"{place_of(recipe, 'train', *keys)}: `train.{keys[0]}: {named.name}`"
    plain = named.name.lower().replace("_", "")
    classes = _classes(module)
    by_shape = _BY_SHAPE if module is keras.metrics else ()
    if not named.arguments and plain not in _NOT_NAMES:
        with suppress(ValueError, TypeError):
            if named.name in by_shape or module.get(named.name):
                return named.name
    if plain not in classes or plain in _NOT_NAMES:
        known = [name for name, value in vars(module).items() if callable(value) and name.lower() not in _NOT_NAMES]
        raise RecipeError(f"{about} is not a name that Keras knows.{did_you_mean(named.name, [*by_shape, *known])}")
    try:
        with fresh_names():  # else a metric is called `precision_1` in the second run of a process
            return classes[plain](**named.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{about} does not accept its arguments. Keras says: {reason(error)}.") from error
