"""From the `model` of a recipe to the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from finetune.errors import FinetuneError, RecipeError
from finetune.groups.layer_tree import LayerTree
from finetune.models.applications import make_application, top_layers
from finetune.models.builders import call_builder, check_model, load_keras_file
from finetune.models.heads import HEAD, add_head
from finetune.models.hub_models import make_hub_model
from finetune.models.presets import make_preset
from finetune.pretrained.restore import restore
from finetune.recipe.loader import place_of, resolve_path, resolve_place
from finetune.recipe.schema import Recipe


def build_model(recipe: Recipe) -> keras.Model:
    """Builds or loads the network of a recipe, and adds a head where the recipe has `model.head`.

    A network from a builder has fresh weights; from any other source it has the weights of that source.

    Raises:
        FinetuneError: The source cannot be loaded, or does not take the arguments of the recipe. The message begins
            with the place in the recipe.
    """
    model = _build_network(recipe)
    head = recipe.model.head
    if head is None:
        return model
    with _placed(recipe, "head"):
        # The layer around a hub module has selected its output already; a preset still has all of them.
        key = recipe.model.output_key if recipe.model.preset else None
        return add_head(model, output_key=key, **dict(head))


def _build_network(recipe: Recipe) -> keras.Model:
    source = recipe.model
    if source.keras_file:
        return check_model(load_keras_file(resolve_path(recipe, source.keras_file)), source.keras_file)
    if source.application:
        with _placed(recipe, "application"):
            return _build_application(recipe, source.application, source.weights or "none")
    if source.hub:
        with _placed(recipe, "hub"):
            return make_hub_model(
                resolve_place(recipe, source.hub),
                signature=source.signature,
                output_key=source.output_key,
                input_shape=source.input_shape,
                output_shape=source.output_shape,
            )
    if source.preset:
        with _placed(recipe, "preset"):
            place = resolve_place(recipe, source.preset)
            return make_preset(place, whole_task=source.head is None, arguments=source.arguments)
    assert source.builder  # the schema requires exactly one source
    return check_model(call_builder(source.builder, source.arguments), source.builder)


def _build_application(recipe: Recipe, name: str, weights: str) -> keras.Model:
    source = recipe.model
    settings: Any = {"input_shape": source.input_shape, "arguments": source.arguments}
    model = make_application(name, imagenet=weights == "imagenet", include_top=source.include_top, **settings)
    if weights not in ("none", "imagenet"):  # a file
        # Without `include_top` the file may still hold the classifier that the network was trained with.
        unused = () if source.include_top else top_layers(name, model, **settings)
        with _placed(recipe, "weights"):
            restore(model, resolve_path(recipe, weights), allow_unused=unused)
    return model


@contextmanager
def _placed(recipe: Recipe, key: str) -> Iterator[None]:
    """Puts the place of a key of `model` in front of an error, unless the error has a place already."""
    try:
        yield
    except RecipeError:
        raise
    except FinetuneError as error:
        place = place_of(recipe, "model", key)
        raise RecipeError(f"{place}: `model.{key}`: {error}" if place else str(error)) from error


def pretrained_sources(recipe: Recipe, tree: LayerTree) -> dict[str, str]:
    """Returns the source of every weight that came with the network.

    Args:
        recipe: The recipe.
        tree: The layer tree of the model.

    Returns:
        A file, a handle or a name, by the name of the weight. Weights of a new head are fresh and not in it, nor is
        anything of a network whose builder the recipe names: finetune cannot know what that code has loaded.
    """
    model = recipe.model
    source = model.keras_file or model.hub or model.preset or model.weights
    if source is None or (model.application and source == "none"):
        return {}
    pretrained = [leaf for leaf in tree.leaves if model.head is None or not leaf.name.startswith(f"{HEAD}/")]
    return {leaf.name: str(source) for leaf in pretrained}
