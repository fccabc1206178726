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
    """Builds or loads the network, with fresh weights where it is built, and puts a head on where one is wanted."""
    model = _build_network(recipe)
    head = recipe.model.head
    if head is None:
        return model
    with _placed(recipe, "head"):
        key = recipe.model.output_key if recipe.model.preset else None  # a hub module has chosen already
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
    assert source.builder  # the schema holds that there is exactly one source
    return check_model(call_builder(source.builder, source.arguments), source.builder)


def _build_application(recipe: Recipe, name: str, weights: str) -> keras.Model:
    source = recipe.model
    settings: Any = {"input_shape": source.input_shape, "arguments": source.arguments}
    model = make_application(name, imagenet=weights == "imagenet", include_top=source.include_top, **settings)
    if weights not in ("none", "imagenet"):
        unused = () if source.include_top else top_layers(name, model, **settings)
        with _placed(recipe, "weights"):
            restore(model, resolve_path(recipe, weights), allow_unused=unused)
    return model


@contextmanager
def _placed(recipe: Recipe, key: str) -> Iterator[None]:
    """Puts in front of an error, once, where the recipe wrote what it is about."""
    try:
        yield
    except RecipeError:
        raise
    except FinetuneError as error:
        place = place_of(recipe, "model", key)
        raise RecipeError(f"{place}: `model.{key}`: {error}" if place else str(error)) from error


def pretrained_sources(recipe: Recipe, tree: LayerTree) -> dict[str, str]:
    """Returns where the weights that the network brings along are from, by name; those of a new head are fresh."""
    source = recipe.model
    found = source.keras_file or source.hub or source.preset or source.weights
    if found is None or (source.application and found == "none"):
        return {}
    old = [leaf for leaf in tree.leaves if source.head is None or not leaf.name.startswith(f"{HEAD}/")]
    return {leaf.name: str(found) for leaf in old}
