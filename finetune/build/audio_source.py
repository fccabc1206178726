"""From folders of sounds to examples, shaped for the input of a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from finetune.build.source_keys import limited_rows, network_inputs
from finetune.build.source_splits import left_out, rows_of_class_files, split_examples
from finetune.data.audio import ENDINGS, read_head, sound_rows
from finetune.data.class_folders import find_files
from finetune.data.examples import Examples
from finetune.data.rows import Rows
from finetune.errors import DataError
from finetune.recipe.loader import resolve_path
from finetune.recipe.schema import Recipe


def audio_examples(recipe: Recipe, folder: str, network: keras.Model | None) -> Examples:
    """Makes examples of a folder of sounds.

    Args:
        recipe: The recipe.
        folder: The folder, as the recipe names it.
        network: The network, whose input says how long the sounds are where the recipe does not.

    Raises:
        DataError: The sounds cannot be read, or cannot be split as the recipe says.
    """
    place = resolve_path(recipe, folder)
    files = find_files(place, ENDINGS, "WAV files", "dog")
    files = files.select(limited_rows(recipe, len(files)))  # first: of the others nothing is read
    inputs = network_inputs(network)
    x, about = network_sounds(recipe, files.paths, inputs[""] if list(inputs) == [""] else None)
    parts = rows_of_class_files(x, files)
    return split_examples(
        recipe, parts, {"kind": "audio", "folder": str(place), **about, **left_out(files, ENDINGS)}, network=network
    )


def network_sounds(
    recipe: Recipe, paths: Sequence[Path], network_input: Any, places: Sequence[str] = ()
) -> tuple[Rows, dict[str, Any]]:
    """Returns sounds of the length that an input takes, and how they were read.

    Args:
        recipe: The recipe, whose `sample_rate` and `length` count where they are written.
        paths: The WAV files.
        network_input: The symbolic input of the network, or `None` where it is not known.
        places: Where each file is named, such as `sounds.csv:17`, if anywhere.

    Raises:
        DataError: The input is not for sounds, or the length or the rate is not known.
    """
    shape = tuple(getattr(network_input, "shape", None) or (None, None))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (None, 1)):
        raise DataError(
            f"Sounds are samples: `(length,)`, or `(length, 1)`. The network takes {shape[1:]}. Use a network for "
            "samples, such as one that begins with `STFTSpectrogram` or `Conv1D`."
        )
    length = recipe.data.length or shape[1]
    if length is None:
        raise DataError(
            "Sounds must all have the same length, and the network takes any. Set `data.length`, in samples, such as "
            "`16000`."
        )
    if shape[1] not in (None, length):
        raise DataError(
            f"The network takes sounds of {shape[1]:,} samples, and `data.length` is {length:,}. Remove it."
        )
    rate = recipe.data.sample_rate or _common_rate(paths, skip=recipe.data.on_error == "skip")
    options: dict[str, Any] = {"rate": rate, "length": length, "channel_axis": len(shape) == 3}
    rows = sound_rows(paths, **options, checked=recipe.data.on_error == "stop", places=places)
    return rows, {"sample_rate": rate, "length": length}


def _common_rate(paths: Sequence[Path], *, skip: bool) -> int:
    rates: dict[int, Path] = {}
    for path in paths:
        try:
            rates.setdefault(read_head(path).rate, path)
        except DataError:
            if not skip:
                raise
    if len(rates) != 1:
        shown = ", ".join(f"`{path.name}` {rate:,}" for rate, path in list(rates.items())[:3]) or "none can be read"
        raise DataError(
            f"Sounds must all have the same samples in a second: {shown}. Set `data.sample_rate`, and the others are "
            "resampled."
        )
    return next(iter(rates))
