"""From the `train` of a recipe to a compiled model: its loss, its metrics and how Keras calls a step."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import chain, count
from typing import Any

import keras
import numpy as np

from finetune.build.data import steps_per_epoch
from finetune.build.model import keys_of_width
from finetune.data.examples import Examples
from finetune.data.loss_families import plain_name
from finetune.distribution.strategy import scope_of
from finetune.errors import DataError, RecipeError, quote, reason
from finetune.keras_private import fresh_names
from finetune.models.nearest_names import offer_names
from finetune.models.output_activation import PROBABILITIES, output_activations
from finetune.models.output_names import by_output_name, output_names
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import place_of, placed
from finetune.recipe.losses import by_output
from finetune.recipe.optimizers import Named
from finetune.recipe.schema import Recipe
from finetune.training.fitted_metrics import FittedMetric, Task, accuracy_of, fit_metric, notes_on, task_of, try_metric
from finetune.training.loss_advice import takes_logits
from finetune.training.smoothed_loss import SmoothedSparseCategoricalCrossentropy
from finetune.training.target_checks import WidthError, check_forms
from finetune.training.try_examples import Trial

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras chooses the class by the shape of the targets
_NO_SCOPE = nullcontext()
_NOT_NAMES = ("get", "serialize", "deserialize", "loss", "metric")  # in Keras' modules, but neither losses nor metrics


@located_at("train")
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
    losses = {name: _loss(recipe, name, named) for name, named in by_output(train.loss).items()}
    with placed(recipe, "train", "loss"), placed(recipe, *keys_of_width(recipe), only=WidthError):
        check_forms(model, losses, trial.y, trial.outputs)  # first: metrics fail on the same in TensorFlow's words
    tasks = _tasks(recipe, model, losses, examples, trial)
    metrics = {
        name: list(_metrics(recipe, name, named, tasks.get(name), model, trial))
        for name, named in by_output(train.metrics).items()
    }
    with scope_of(model):
        model.compile(
            optimizer=optimizer,
            loss=losses[""] if list(losses) == [""] else losses,  # pyright: ignore[reportArgumentType] - Keras' default is a str
            metrics=metrics[""] if list(metrics) == [""] else metrics,
            # More steps than an epoch has would share no more calls, and Keras' own loop writes each into a graph.
            steps_per_execution=min(1 if train.steps_per_execution == "auto" else train.steps_per_execution, steps),
            jit_compile=train.jit_compile,  # pyright: ignore[reportArgumentType] - Keras' default makes it a str
        )
    notes = [
        notes_on(metric.name, metric.arguments, task, _named_loss(recipe, name).name)
        for name, named in by_output(train.metrics).items()
        for metric in named
        if (task := tasks.get(name))
    ]
    return tuple(filter(None, notes))


def _loss(recipe: Recipe, output: str, named: Named) -> Any:
    """Returns the loss of an output as `compile` accepts it, with smoothed labels where the recipe asks for them."""
    smoothing, keys = recipe.train.label_smoothing, ("loss", output) if output else ("loss",)
    if not smoothing:
        return _keras_object(recipe, keras.losses, named, *keys)
    plain = plain_name(named.name)
    if plain == "sparsecategoricalcrossentropy":
        about = f"{place_of(recipe, 'train', *keys)}: `train.{keys[0]}: {named.name}`"
        try:
            return SmoothedSparseCategoricalCrossentropy(smoothing, **named.arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{about} does not accept its arguments: {reason(error)}.") from error
    kind = _classes(keras.losses).get(plain)
    if kind is None or "label_smoothing" not in inspect.signature(kind).parameters:
        known = [name for name, each in vars(keras.losses).items() if inspect.isclass(each)]
        smooth = [n for n in known if "label_smoothing" in inspect.signature(getattr(keras.losses, n)).parameters]
        raise RecipeError(
            f"{place_of(recipe, 'train', 'label_smoothing')}: `train.label_smoothing` is for losses of classes: "
            f"{quote(['SparseCategoricalCrossentropy', *smooth])}. The loss is `{named.name}`. Remove "
            "`label_smoothing`, or take another loss."
        )
    with_smoothing = Named(name=named.name, arguments={**named.arguments, "label_smoothing": smoothing})
    return _keras_object(recipe, keras.losses, with_smoothing, *keys)


def _named_loss(recipe: Recipe, output: str) -> Named:
    losses = by_output(recipe.train.loss)
    return losses.get(output) or next(iter(losses.values()))


def _tasks(
    recipe: Recipe, model: keras.Model, losses: Mapping[str, Any], examples: Examples, trial: Trial
) -> dict[str, Task | None]:
    """Returns the form of targets and outputs of each output by its name."""
    activations = dict(zip(output_names(model), output_activations(model), strict=False))
    outputs, few = by_output_name(model, trial.outputs), by_output_name(model, trial.y)
    every, tasks = by_output_name(model, examples.y_train), {}
    for name, output in outputs.items():
        logits = bool(takes_logits(losses.get(name, losses.get("")))) and activations.get(name) not in PROBABILITIES
        y = every[name] if isinstance(every.get(name), np.ndarray) else few.get(name)
        tasks[name] = task_of(y, output, loss=_named_loss(recipe, name).name, logits=logits)
    return tasks


def _metrics(
    recipe: Recipe, output: str, every: Sequence[Named], task: Task | None, model: keras.Model, trial: Trial
) -> Iterator[Any]:
    """Yields the metrics as `compile` accepts them: by name where Keras makes the right one of it, else objects."""
    used: set[str] = set()
    y, outputs = (by_output_name(model, each).get(output) for each in (trial.y, trial.outputs))
    for index, named in enumerate(every):
        keys = ("metrics", output, index) if output else ("metrics", index)
        metric = _keras_object(recipe, keras.metrics, named, *keys, scope=scope_of(model))
        if task:
            try:
                metric = _fitted(metric, named, task, y, outputs, scope_of(model))
            except DataError as error:
                place = place_of(recipe, "train", *keys)
                raise RecipeError(f"{place}: metric `{named.name}` {error}") from error
        if isinstance(metric, str):
            used.add(metric)
        else:
            candidates = chain([metric.name], (f"{metric.name}_{number}" for number in count(1)))
            metric.name = next(name for name in candidates if name not in used)
            used.add(metric.name)
        yield metric


def _fitted(metric: Any, named: Named, task: Task, y: Any, outputs: Any, scope: Any) -> Any:
    """Returns a metric that is right for the task; the name alone where Keras makes just that of it."""
    plain = named.name.lower().replace("_", "")
    by_shape = plain in ("accuracy", "acc")
    make: Any = accuracy_of(task) if by_shape else _classes(keras.metrics).get(plain) or keras.metrics.get(named.name)
    make = type(make) if isinstance(make, keras.metrics.Metric) else make  # Keras makes an object of `mae`
    try:
        with scope, fresh_names():
            fitted = fit_metric(named.name, make, named.arguments, task)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"does not accept its arguments. Keras says: {reason(error)}.") from error
    try_metric(fitted, y, outputs)
    if isinstance(metric, str):
        if not task.probabilities and not isinstance(fitted, FittedMetric):
            return metric
        fitted.name = metric
    return fitted


def _classes(module: Any) -> dict[str, type]:
    return {name.lower(): value for name, value in vars(module).items() if inspect.isclass(value)}


def _names(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and name.lower() not in _NOT_NAMES]


def _keras_object(recipe: Recipe, module: Any, named: Named, *keys: str | int, scope: Any = _NO_SCOPE) -> Any:
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
        known = [*by_shape, *_names(module)]
        other = keras.losses if module is keras.metrics else keras.metrics
        others = [*(_BY_SHAPE if other is keras.metrics else ()), *_names(other)]
        kind = "a metric" if other is keras.metrics else "a loss"
        raise RecipeError(f"{about} is not a name that Keras knows.{offer_names(named.name, known, others, kind)}")
    try:
        with scope, fresh_names():  # else a metric is called `precision_1` in the second run of a process
            return classes[plain](**named.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{about} does not accept its arguments. Keras says: {reason(error)}.") from error
