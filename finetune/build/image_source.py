"""From folders of images to examples, shaped for the input of a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from finetune.build.source_keys import limited_rows, network_inputs
from finetune.build.source_splits import left_out, rows_of_class_files, split_examples
from finetune.data.examples import Examples
from finetune.data.images import ENDINGS, find_images, image_rows
from finetune.errors import DataError
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe


def image_examples(recipe: Recipe, folder: str, network: keras.Model | None) -> Examples:
    """Makes examples of a folder of images.

    Args:
        recipe: The recipe.
        folder: The folder, as the recipe names it.
        network: The network, whose input says how large the images are where the recipe does not.

    Raises:
        DataError: The images cannot be read, or cannot be split as the recipe says.
    """
    place = resolve_path(recipe, folder)
    files = find_images(place)
    files = files.select(limited_rows(recipe, len(files)))  # first: of the others nothing is read
    shape = network_inputs(network)[""] if len(network_inputs(network)) == 1 else None
    x, about = network_images(recipe, files.paths, shape)
    parts = rows_of_class_files(x, files)
    about = {"kind": "images", "folder": str(place), **about, **left_out(files, ENDINGS)}
    return split_examples(recipe, parts, about, network=network)


def network_images(
    recipe: Recipe, paths: Sequence[Path], network_input: Any, places: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Returns images of the height, width and channels that an input takes, and how they were read.

    Args:
        recipe: The recipe, whose `size` counts where it is written.
        paths: The files of the images.
        network_input: The symbolic input of the network, or `None` where it is not known.
        places: Where each file is named, such as `photos.csv:17`, if anywhere.

    Raises:
        DataError: The input is not for images, or the size is not known.
    """
    options = image_options(recipe, network_input)
    return image_rows(paths, **options, checked=recipe.data.on_error == "stop", places=places), options


def image_options(recipe: Recipe, network_input: Any, size: Sequence[int] | None = None) -> dict[str, Any]:
    """Returns `size`, `channels`, `resize` and `value_range` of images for an input of a network.

    Args:
        recipe: The recipe.
        network_input: The symbolic input of the network, or `None` where it is not known.
        size: Height and width; by default those of the recipe, or what the network takes.

    Raises:
        DataError: The input is not for images, or the size is not known.
    """
    shape = tuple(getattr(network_input, "shape", None) or (None,) * 4)
    if len(shape) != 4 or shape[3] not in (None, 1, 3):
        raise DataError(
            f"Images have height, width and 1 or 3 channels. The network takes {shape[1:]}. Use a network for images, "
            "or other data."
        )
    sizes: Any = size or recipe.data.size or shape[1:3]
    if None in sizes:
        raise DataError(
            "Images must all have the same size, and the network takes any. Set `data.size`, such as `[224, 224]`."
        )
    options: Any = {"size": tuple(sizes), "channels": shape[3] or 3}
    options |= {"resize": recipe.data.resize, "value_range": recipe.data.value_range}
    return options
