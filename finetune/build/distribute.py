"""From the `distribute` of a recipe to the devices that train, and to the batches and rates that follow from them."""

from collections import Counter
from math import sqrt
from typing import Any

import keras

from finetune import keras_private
from finetune.distribution.strategy import Distribution, make_distribution
from finetune.errors import RecipeError, counted
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import place_of, with_values
from finetune.recipe.rate_edits import scaled
from finetune.recipe.schema import Recipe


@located_at("distribute")
def build_distribution(recipe: Recipe) -> Distribution:
    """Finds the devices on which a recipe is trained.

    Raises:
        FinetuneError: There are no such devices.
    """
    spec = recipe.distribute
    return make_distribution(spec.devices, cpu_devices=spec.cpu_devices)


def with_global_batch(recipe: Recipe, distribution: Distribution) -> tuple[Recipe, tuple[str, ...]]:
    """Derives the recipe in which `batch_size` counts the rows on all devices together, and rates are for such batches.

    Args:
        recipe: The recipe.
        distribution: The devices.

    Returns:
        The recipe, and sentences on what was made of it.

    Raises:
        RecipeError: A batch has fewer rows than there are replicas, or a key is for a single device.
    """
    spec, rows, replicas = recipe.distribute, recipe.train.batch_size, distribution.replicas
    if replicas > 1 and recipe.train.jit_compile:
        raise RecipeError(
            f"{place_of(recipe, 'train', 'jit_compile')}: `train.jit_compile` is for a single device, since XLA "
            "compiles a step for one, and gradients are summed over devices within it. The recipe is trained on "
            f"{replicas} replicas (`distribute.devices: {distribution.devices}`). Remove it, or write `devices: "
            "single`."
        )
    if spec.batch_size_is == "per_replica":
        assert rows != "auto"  # the schema refuses it
        recipe, sentence = _from_per_replica(recipe, rows, replicas)
        return recipe, (sentence,) if sentence else ()
    if rows != "auto" and rows < replicas:
        raise RecipeError(
            f"{place_of(recipe, 'train', 'batch_size')}: `train.batch_size` must be at least the number of replicas, "
            f"so that each has a row. Received {rows} with {replicas} replicas. Take larger batches, or fewer devices."
        )
    return recipe, ()


def _from_per_replica(recipe: Recipe, rows: int, replicas: int) -> tuple[Recipe, str]:
    scale = recipe.distribute.scale_rates
    values: dict[tuple[str | int, ...], Any] = {
        ("train", "batch_size"): rows * replicas,
        ("distribute", "batch_size_is"): "global",
        ("distribute", "scale_rates"): None,
    }
    recipe = with_values(recipe, values)
    if replicas == 1:
        return recipe, ""
    batch = f"a batch has {rows} rows on each of {replicas} replicas, {rows * replicas} in all"
    if not scale:
        return recipe, (
            f"{batch}. Learning rates are used as written; `distribute.scale_rates: linear` (or `sqrt`) multiplies "
            f"them by {replicas} (or {sqrt(replicas):.3g})"
        )
    factor = float(replicas) if scale == "linear" else sqrt(replicas)
    groups = recipe.groups if isinstance(recipe.groups, tuple) else ()
    names = [group.name for group in groups if not group.frozen] or [""]
    recipe = scaled(recipe, dict.fromkeys(names, factor))
    return recipe, f"{batch}. All learning rates of the groups are multiplied by {factor:.3g}, as `scale_rates` asks"


def synchronize_batch_norm(recipe: Recipe, model: keras.Model, distribution: Distribution) -> None:
    """Lets BatchNormalization normalize by the rows of all replicas where the recipe asks for it.

    Args:
        recipe: The recipe.
        model: The model, before anything of it is traced.
        distribution: The devices.
    """
    if distribution.replicas > 1 and recipe.distribute.batch_norm == "synchronized":
        for layer in keras_private.sublayers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


def described(distribution: Distribution, batch_size: int, model: keras.Model) -> str:
    """Returns a sentence on the devices, and what each has of a batch.

    Args:
        distribution: Several replicas.
        batch_size: Rows in a batch, on all replicas together.
        model: The model.
    """
    replicas, layers = distribution.replicas, keras_private.sublayers(model)
    shares = Counter((n + 1) * batch_size // replicas - n * batch_size // replicas for n in range(replicas))
    of_each = " and ".join(f"{rows} on {counted(count, 'replica')}" for rows, count in sorted(shares.items())[::-1])
    where = f" ({', '.join(distribution.names)})" if distribution.names else ""
    devices = f"devices: {distribution.devices}, {replicas} replicas{where}"
    sentence = f"{devices}; of the {batch_size} rows in a batch, {of_each}"
    norms = [each for each in layers if isinstance(each, keras.layers.BatchNormalization) and each.trainable]
    if not (local := sum(not each.synchronized for each in norms)):
        return sentence
    return (
        f"{sentence}. {counted(local, 'BatchNormalization layer')} in training mode: the rows of each replica are "
        "normalized by themselves; `distribute.batch_norm: synchronized` takes all rows of the batch"
    )
