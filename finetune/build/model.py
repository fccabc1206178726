"""From the `model` of a recipe to the network."""

from typing import Any, NamedTuple

import keras
import numpy as np

from finetune.build.data import build_examples
from finetune.build.objectives import with_chosen_losses, with_logits
from finetune.data.examples import Examples
from finetune.data.labels import count_outputs
from finetune.data.loss_families import activation_for
from finetune.distribution.strategy import SINGLE, Distribution, adopt
from finetune.errors import DataError, RestoreError
from finetune.groups.layer_tree import LayerTree
from finetune.models.applications import make_application
from finetune.models.builders import call_builder, check_model, load_keras_file
from finetune.models.graph_consent import require_consent
from finetune.models.heads import HEAD, add_head
from finetune.models.hub_models import make_hub_model
from finetune.models.preset_images import converter_sentence
from finetune.models.presets import make_preset
from finetune.models.weight_memory import limited_to_memory
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.restore import restore
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import placed, resolve_path, resolve_place
from finetune.recipe.losses import by_output
from finetune.recipe.schema import Recipe
from finetune.training.try_examples import explained


@located_at("model")
@limited_to_memory()
def build_network(recipe: Recipe, *, waits: bool = False) -> keras.Model:
    """Builds or loads the network of a recipe, without the head that the recipe may add.

    A network from a builder has fresh weights; from any other source it has the weights of that source.

    Args:
        recipe: The recipe.
        waits: Whether the network of a builder may have no weights yet, until `build_for` knows the rows.

    Raises:
        FinetuneError: The source cannot be loaded, or does not take the arguments of the recipe. The message begins
            with the place in the recipe.
    """
    source = recipe.model
    if source.keras_file:
        return check_model(load_keras_file(resolve_path(recipe, source.keras_file)), source.keras_file)
    if source.application:
        with placed(recipe, "model", "application"):
            return _build_application(recipe, source.application, source.weights or "none")
    if source.hub:
        with placed(recipe, "model", "hub"):
            handle, allowed = resolve_place(recipe, source.hub), recipe.allowed_code
            if allowed is not None:
                require_consent(handle, allowed, written=source.hub)
            return make_hub_model(
                handle,
                signature=source.signature,
                output_key=source.output_key,
                input_shape=source.input_shape,
                output_shape=source.output_shape,
                allow_operations=() if allowed is None else None,
            )
    if source.preset:
        with placed(recipe, "model", "preset"):
            place = resolve_place(recipe, source.preset)
            pairs = any(len(columns) > 1 for columns in recipe.data.inputs.values())
            options: Any = {"arguments": source.arguments, "pairs": pairs, "size": recipe.data.size}
            return make_preset(place, whole_task=source.head is None, **options)
    assert source.builder  # the schema requires exactly one source
    with placed(recipe, "model", "builder"):
        network = call_builder(source.builder, source.arguments)
    return network if waits and isinstance(network, keras.Model) else check_model(network, source.builder)


def build_for(recipe: Recipe, network: keras.Model, examples: Examples) -> None:
    """Makes the weights of a network that waits for the shape of its first rows, as `fit` does.

    Args:
        recipe: The recipe.
        network: The network, which nothing happens to if it has its weights.
        examples: The examples.

    Raises:
        FinetuneError: The network cannot be built for such rows.
    """
    if network.built:
        return
    x, _ = examples.train.first(1)
    rows = keras.tree.map_structure(lambda part: keras.Input(part.shape[1:], dtype=part.dtype.name), x)
    shapes = keras.tree.map_structure(lambda part: f"{tuple(part.shape[1:])} of {part.dtype.name}", x)
    advice = f"A row of the data is {shapes}. Change the data or the model."
    is_taken = explained(DataError, "A network takes the rows of the data.", advice)
    with placed(recipe, "model", "builder"), is_taken, limited_to_memory():
        network(rows)
        check_model(network, str(recipe.model.builder))


@located_at("model", "head")
@limited_to_memory()
def with_head(recipe: Recipe, network: keras.Model, examples: Examples | None = None) -> keras.Model:
    """Adds a head to the network where the recipe has `model.head`.

    Args:
        recipe: The recipe.
        network: The network.
        examples: The examples, whose targets decide `head.classes: auto`.

    Raises:
        RecipeError: The head does not fit the network, or its width is not known.
    """
    head = recipe.model.head
    if head is None:
        return network
    with placed(recipe, "model", "head"):
        settings = {key: value for key, value in head if key != "standardize"}
        loss = by_output(recipe.train.loss).get("")
        if head.classes == "auto":
            if loss is None:
                raise DataError("`classes: auto` is for a single output, and `train.loss` has several. Write a number.")
            settings["classes"] = count_outputs(examples, loss.name)
        if head.activation is None and loss and loss.name == "auto":
            raise DataError(
                "`loss: auto` is chosen by the targets, which are not read here, and it decides in which activation "
                "the head ends. Write the name of the loss, or the `activation`."
            )
        if head.activation is None and loss:
            settings["activation"] = activation_for(loss.name, settings["classes"])
        if head.standardize:
            settings["rescaling"] = _scale_of_targets(examples, settings["activation"], settings["classes"])
        # The layer around a hub module has selected its output already; a preset still has all of them.
        key = recipe.model.output_key if recipe.model.preset else None
        return add_head(network, output_key=key, **settings)


def _scale_of_targets(examples: Examples | None, activation: str | None, classes: int) -> tuple[Any, Any]:
    """Returns standard deviation and mean of the training targets, for each of the outputs of a head."""
    y = examples.y_train if examples else None
    if activation != "linear":
        raise DataError(
            "`standardize: true` is for targets that are numbers, and a head that ends without an activation. It ends "
            f"in `{activation}`. Remove `standardize`, or take a loss of numbers such as `mean_squared_error`."
        )
    if not isinstance(y, np.ndarray) or y.dtype.kind not in "biuf" or y.size != len(y) * classes:
        received = f"a `{type(y).__name__}`" if not isinstance(y, np.ndarray) else f"an array of shape {y.shape}"
        raise DataError(
            f"`standardize: true` takes mean and spread of the training targets, {classes} for each row, in memory. "
            f"There is {'nothing yet' if y is None else received}. Remove it."
        )
    columns = y.reshape(-1, classes).astype(np.float64)
    spread, mean = columns.std(axis=0), columns.mean(axis=0)
    spread[spread == 0] = 1.0  # a target that is constant in the training rows
    return (float(spread[0]), float(mean[0])) if classes == 1 else (spread.tolist(), mean.tolist())


class Built(NamedTuple):
    """The model and the examples of a recipe.

    Attributes:
        recipe: The recipe, with losses and metrics in place of `auto`.
        model: The model.
        examples: The examples.
        chosen: Sentences on the losses and metrics that were chosen.
    """

    recipe: Recipe
    model: keras.Model
    examples: Examples
    chosen: tuple[str, ...]


def build_model_and_examples(recipe: Recipe, distribution: Distribution = SINGLE) -> Built:
    """Builds the model and the examples of a recipe, which need each other.

    The size of images is by default that of the network's input, and the width of the head that of the targets.

    Args:
        recipe: The recipe.
        distribution: The devices on which the model has its weights.

    Raises:
        FinetuneError: As `build_network`, `build_examples`, `with_chosen_losses` and `with_head`.
    """
    with distribution.scope():
        network = build_network(recipe, waits=True)
    adopt(network)
    examples = build_examples(recipe, network)
    with distribution.scope():
        build_for(recipe, network, examples)
    chosen = with_chosen_losses(recipe, network, examples)
    with distribution.scope():
        model = with_head(chosen.recipe, network, chosen.examples)
    adopt(model)
    sentences = tuple(filter(None, (converter_sentence(network), *chosen.sentences)))
    return Built(with_logits(chosen, model, chosen.examples), model, chosen.examples, sentences)


def keys_of_width(recipe: Recipe) -> tuple[str, ...]:
    """Returns the keys of the recipe that say how many values the network gives for a row."""
    head, source = recipe.model.head, recipe.model
    kinds = ("builder", "keras_file", "application", "preset", "hub")
    of_source = next(kind for kind in kinds if getattr(source, kind))
    return ("model", "head", "classes") if head else ("model", of_source)


def _build_application(recipe: Recipe, name: str, weights: str) -> keras.Model:
    source = recipe.model
    settings: Any = {"input_shape": source.input_shape, "arguments": source.arguments}
    model = make_application(name, imagenet=weights == "imagenet", include_top=source.include_top, **settings)
    if weights not in ("none", "imagenet"):  # a file
        with placed(recipe, "model", "weights"):
            path = resolve_path(recipe, weights)
            # Without `include_top` the file may still hold the classifier that the network was trained with, or that
            # somebody put on top of it, maybe beside the network as a layer. Every weight of the network must be there.
            layers = {tensor.name.partition("/")[0] for tensor in read_weights(path).tensors}
            unused = () if source.include_top else layers
            try:
                restore(model, path, allow_unused=unused)
            except RestoreError as error:
                head = "exclude: [head], " if source.head else ""
                raise RestoreError(
                    f"{error}\nRules such as `rename` and `allow_unused` are keys of `restore`: write `weights: none` "
                    f"and `restore: {{from: {weights}, {head}allow_unused: [...]}}`."
                ) from error
    return model


@located_at("model")
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
