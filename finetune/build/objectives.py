"""Losses and metrics that a recipe leaves open (`auto`), chosen by the targets and the network.

The choice has two parts, since each needs the other's result: the names are chosen by the targets before a head is
added (`with_chosen_losses`), and whether the loss takes logits by what the whole model ends in (`with_logits`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from finetune.build.source_keys import output_widths
from finetune.data.examples import Examples, class_numbers
from finetune.data.labels import with_one_hot_targets
from finetune.data.loss_families import ONE_HOT, SPARSE, family_of, plain_name
from finetune.data.targets import kind_of_array, loss_for, metrics_for
from finetune.errors import DataError, RecipeError, did_you_mean, quote
from finetune.models.output_activation import PROBABILITIES, output_activations
from finetune.models.output_names import by_output_name, output_names
from finetune.recipe.augment import MIXING_LAYERS
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import place_of, placed, with_values
from finetune.recipe.losses import by_output
from finetune.recipe.schema import Recipe

_AUTO = "auto"
_ROWS = 8  # whose outputs show whether they are probabilities, where the graph does not


class Chosen(NamedTuple):
    """A recipe without `auto` in its losses and metrics.

    Attributes:
        recipe: The recipe.
        outputs: Names of the outputs whose loss was chosen.
        sentences: What was chosen, and by which targets.
        examples: The examples, with targets in the form that the chosen losses take.
    """

    recipe: Recipe
    outputs: tuple[str, ...]
    sentences: tuple[str, ...]
    examples: Examples


@located_at("train", "loss")
def with_chosen_losses(recipe: Recipe, network: keras.Model, examples: Examples) -> Chosen:
    """Chooses losses and metrics by the targets.

    Where layers blend the rows of a batch, classes get a target each: half of a cat and half of a dog has no number.

    Args:
        recipe: The recipe.
        network: The network, without the head that the recipe may add.
        examples: The examples.

    Raises:
        RecipeError: The targets do not say which loss fits.
    """
    losses, metrics = by_output(recipe.train.loss), by_output(recipe.train.metrics)
    widths = output_widths(recipe, network)
    _check_names(recipe, widths)
    is_loss_open = {name: loss.name == _AUTO for name, loss in losses.items()}
    is_open = any(is_loss_open.values()) or any(each.name == _AUTO for named in metrics.values() for each in named)
    blending = next((each.layer for each in recipe.data.augment if each.layer in MIXING_LAYERS), None)
    if not is_open:
        return Chosen(recipe, (), (), _for_blending(recipe, blending, losses, widths, examples))
    if any(is_loss_open.values()) and list(losses) == [""]:
        losses = dict.fromkeys(widths, losses[""])
    if list(metrics) == [""]:
        metrics = dict.fromkeys(widths, metrics[""])
    key = "loss" if any(is_loss_open.values()) else "metrics"
    names: dict[str, Any] = {name: loss.model_dump() for name, loss in losses.items()}
    of_metrics: dict[str, Any] = {name: [each.model_dump() for each in named] for name, named in metrics.items()}
    targets = by_output_name(network, examples.y_train)
    chosen, sentences = [], []
    with placed(recipe, "train", key):
        for name in widths:
            kind, reason = _kind(examples, targets, name, widths[name])
            if names.get(name) == _AUTO:
                names[name] = loss_for(kind, widths[name])
                chosen.append(name)
                if blending and family_of(names[name]) == SPARSE:
                    if class_numbers(targets.get(name), 0) is None:
                        raise DataError(
                            f"`{blending}` blends the targets of two rows, which is possible where a row has a single "
                            f"class. These have {targets[name].shape[1:]} classes a row. Remove the layer."
                        )
                    names[name] = loss_for(ONE_HOT, widths[name])
                    reason += f", with a target for each class, since `{blending}` blends them"
            of_metrics[name] = _filled_in(of_metrics.get(name, []), metrics_for(kind))
            shown = [each if isinstance(each, str) else each["name"] for each in of_metrics[name]]
            of_output = f" of `{name}`" if name else ""
            loss: Any = names.get(name, names.get("", ""))
            loss = loss["name"] if isinstance(loss, dict) else loss
            with_metrics = f", metrics: {quote(shown)}" if shown else ""
            sentences.append(f"loss{of_output}: `{loss}`{with_metrics}, chosen by the targets: {reason}")
    values: dict[tuple[str | int, ...], Any] = {
        ("train", "loss"): _unnamed(names),
        ("train", "metrics"): _unnamed(of_metrics),
    }
    recipe = with_values(recipe, values)
    examples = _for_blending(recipe, blending, by_output(recipe.train.loss), widths, examples)
    return Chosen(recipe, tuple(chosen), tuple(sentences), examples)


def _for_blending(
    recipe: Recipe,
    blending: str | None,
    losses: Mapping[str, Any],
    widths: Mapping[str, int | None],
    examples: Examples,
) -> Examples:
    """Gives numbers of classes a target each, where a layer blends them and the loss takes a target for each class."""
    targets = examples.y_train if isinstance(examples.y_train, Mapping) else {"": examples.y_train}
    one_hot = {
        name: widths.get(name)
        for name, loss in losses.items()
        if blending and family_of(loss.name) == ONE_HOT and class_numbers(targets.get(name), 0) is not None
    }
    with placed(recipe, "data", "augment"):
        return with_one_hot_targets(examples, one_hot)


def with_logits(chosen: Chosen, model: keras.Model, examples: Examples) -> Recipe:
    """Lets chosen losses take logits where the model gives logits.

    Args:
        chosen: What `with_chosen_losses` returned.
        model: The whole model.
        examples: The examples, of which some show the values of outputs where the layers do not.
    """
    losses: dict[str, Any] = {name: loss.model_dump() for name, loss in by_output(chosen.recipe.train.loss).items()}
    activations = dict(zip(output_names(model), output_activations(model), strict=False))
    for name in chosen.outputs:
        if "crossentropy" not in plain_name(str(losses[name])):
            continue
        activation = activations.get(name)
        if activation not in PROBABILITIES and (activation or not _gives_probabilities(model, name, examples)):
            losses[name] = {"name": losses[name], "from_logits": True}
    return with_values(chosen.recipe, {("train", "loss"): _unnamed(losses)}) if chosen.outputs else chosen.recipe


def _check_names(recipe: Recipe, widths: Mapping[str, Any]) -> None:
    """Checks that losses and metrics by name are those of outputs."""
    for key in ("loss", "metrics"):
        written = by_output(getattr(recipe.train, key))
        wrong = [name for name in written if name and name not in widths]
        if wrong:
            known = (
                f"has the outputs {quote(widths)}" if len(widths) > 1 else f"has a single output: write `{key}: ...`"
            )
            raise RecipeError(
                f"{place_of(recipe, 'train', key, wrong[0])}: `train.{key}` names outputs of the network. The network "
                f"{known}. Received: {quote(wrong)}.{did_you_mean(wrong[0], list(widths))}"
            )

    metrics = by_output(recipe.train.metrics).get("", ())
    if len(widths) > 1 and any(metric.name != _AUTO for metric in metrics):
        raise RecipeError(
            f"{place_of(recipe, 'train', 'metrics')}: `train.metrics` names the metrics of each output where there are "
            f"several: {quote(widths)}. Received a list for all. Write "
            f"`metrics: {{{next(iter(widths))}: [{metrics[0].name}]}}`."
        )


def _kind(examples: Examples, targets: Mapping[str, Any], name: str, width: int | None) -> tuple[str, str]:
    about = examples.source.get("target") or {}
    about = about.get(name, {}) if name else about
    if isinstance(about, Mapping) and "kind" in about:
        columns = f"{quote(about['columns'])}, " if "columns" in about else ""
        return about["kind"], columns + about.get("reason", about["kind"])
    return kind_of_array(targets.get(name), width)


def _filled_in(written: list[Any], fitting: tuple[Any, ...]) -> list[Any]:
    """Returns the metrics with those that fit in place of `auto`."""
    every = [each for metric in written for each in (fitting if metric == _AUTO else (metric,))]
    return [each for number, each in enumerate(every) if each not in every[:number]]


def _gives_probabilities(model: keras.Model, name: str, examples: Examples) -> bool:
    x, _ = examples.train.first(_ROWS)
    values = np.asarray(by_output_name(model, model(x, training=False)).get(name, ()), np.float64)
    return bool(values.size) and values.min() >= 0 and values.max() <= 1


def _unnamed(by_name: Mapping[str, Any]) -> Any:
    """Returns what belongs to the only output without its empty name."""
    return by_name[""] if list(by_name) == [""] else dict(by_name)
