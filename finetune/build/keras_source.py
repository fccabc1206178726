"""From the data sets of `keras.datasets` to examples: downloaded by Keras, or read from a local file."""

import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune import keras_private
from finetune.build.source_keys import network_inputs
from finetune.build.source_splits import SourceRows, split_examples
from finetune.data.examples import Examples, Split
from finetune.errors import DataError, quote, reason
from finetune.files.temporary_folders import temporary_folder
from finetune.machine_failures import raise_machine_failure
from finetune.recipe.loader import placed, resolve_path
from finetune.recipe.schema import Recipe

CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
_IMAGES = ("mnist", "fashion_mnist", "cifar10", "cifar100")
_TEXTS = ("imdb", "reuters")
_NUMBERS = ("boston_housing", "california_housing")


def keras_examples(recipe: Recipe, name: str, network: keras.Model | None) -> Examples:
    """Makes examples of a data set of Keras, with the training and test rows that `load_data` gives.

    Args:
        recipe: The recipe.
        name: Name of the data set.
        network: The network, whose input says how long texts are where the recipe does not.

    Raises:
        DataError: The data set cannot be downloaded or read.
    """
    inputs = network_inputs(network)
    shape = tuple(getattr(next(iter(inputs.values())), "shape", None) or ())
    about: dict[str, Any] = {"kind": "keras_dataset", "name": name, "path": str(recipe.data.path or "Keras' downloads")}
    with placed(recipe, "data", "path" if recipe.data.path else "keras_dataset"):
        splits = _load(recipe, name)
    if name in _TEXTS:
        length = recipe.data.length or (shape[1] if len(shape) == 2 else None)
        if length is None:
            raise DataError("Texts must all have the same length, and the network takes any. Set `data.length`.")
        words = _largest_embedding(network)
        about |= {"length": length, "words": f"those beyond {words:,} become 2, which is unknown" if words else "all"}
        splits = {part: (_words(x, length, words), y) for part, (x, y) in splits.items()}
    elif recipe.data.length:
        raise DataError(f"`data.length` is for texts ({quote(_TEXTS)}), and `{name}` has none. Remove it.")
    if name in _IMAGES:
        splits = {part: (_pixels(recipe, x, shape), y) for part, (x, y) in splits.items()}
        about["value_range"] = list(recipe.data.value_range)
    elif tuple(recipe.data.value_range) != (0.0, 255.0):
        raise DataError(f"`data.value_range` is for images ({quote(_IMAGES)}), and `{name}` has none. Remove it.")
    if name in _NUMBERS:
        splits, about["mean"], about["variance"] = _normalized(splits)
    rows = {part: SourceRows(Split(x, _targets(y))) for part, (x, y) in splits.items()}
    if recipe.data.split and recipe.data.split.test:  # asked for other test rows than those of `load_data`
        x, y = (np.concatenate([getattr(part.split, axis) for part in rows.values()]) for axis in "xy")
        rows = {"": SourceRows(Split(x, y))}
    return split_examples(recipe, rows, about, CLASS_NAMES.get(name, ()))


def _load(recipe: Recipe, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    module: Any = getattr(keras.datasets, name)
    path = resolve_path(recipe, recipe.data.path) if recipe.data.path else None
    if path is not None and not path.exists():
        raise DataError(f"`path` is the local file of a data set. `{path}` does not exist.")
    with temporary_folder() as folder:
        try:
            if path is None:
                train, test = module.load_data()
            else:
                with keras_private.local_datasets(name, _finder(name, path, folder)):
                    train, test = module.load_data()
        except DataError:
            raise
        except Exception as error:  # no network, a damaged file: errors of many classes
            raise_machine_failure(error, f"Reading `{path or name}`")
            if path is not None:
                raise DataError(
                    f"`{path}` cannot be read as `{name}`: {type(error).__name__}: {reason(error)}."
                ) from error
            home = Path(os.environ.get("KERAS_HOME", "~/.keras")) / "datasets"
            raise DataError(
                f"`{name}` is downloaded by Keras, which failed: {reason(error)}. Keras looks for it in `{home}` "
                "first; or name a local file with `path`."
            ) from error
    return {"train": train, "test": test}


def _finder(name: str, path: Path, folder: Path) -> Callable[[str], str]:
    """Returns what answers Keras' question where a file of the data set is."""
    if name.startswith("cifar"):
        inner = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
        if path.is_file():
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            path = folder
        above = path.parent if path.name == inner else path
        if not (above / inner).is_dir():
            raise DataError(f"`path` is the archive of `{name}`, or the folder `{inner}`. `{path}` holds none.")
        return lambda file: str(above)
    if name == "fashion_mnist":
        if not path.is_dir():
            raise DataError(f"`path` of `{name}` is the folder with its four files `*-ubyte.gz`. `{path}` is a file.")
        return lambda file: str(path / file)
    if not path.is_file():
        raise DataError(f"`path` of `{name}` is its file, `{name}.npz`. `{path}` is a folder.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"`path` of `{name}` is its file, `{name}.npz`, an archive of arrays. `{path}` is none.")
    return lambda file: str(path)


def _pixels(recipe: Recipe, x: np.ndarray, shape: tuple[Any, ...]) -> np.ndarray:
    """Returns images with the axis of channels that the network takes, in the range that the recipe says."""
    if len(shape) == 4 and x.ndim == 3:
        x = np.repeat(x[..., np.newaxis], shape[3] or 1, axis=-1)
    low, high = recipe.data.value_range
    return x if (low, high) == (0, 255) else (low + x * ((high - low) / 255)).astype(np.float32)


def _words(x: np.ndarray, length: int, words: int | None) -> np.ndarray:
    ids = np.zeros((len(x), length), np.int32)
    for row, text in enumerate(x):
        ids[row, : len(text)] = text[:length]
    return np.where(ids >= words, 2, ids).astype(np.int32) if words else ids


def _largest_embedding(network: Any) -> int | None:
    layers = keras_private.sublayers(network) if network is not None else []
    return max((layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)), default=None)


def _normalized(splits: dict[str, Any]) -> tuple[dict[str, Any], list[float], list[float]]:
    """Gives every column the mean 0 and the variance 1 of the training rows, as those of a `table` have."""
    x = splits["train"][0].astype(np.float64)
    mean, variance = x.mean(axis=0), x.var(axis=0)
    spread = np.where(variance > 0, np.sqrt(variance), 1)
    made = {part: (((x - mean) / spread).astype(np.float32), y) for part, (x, y) in splits.items()}
    return made, mean.tolist(), variance.tolist()


def _targets(y: np.ndarray) -> np.ndarray:
    """Returns targets of shape `(rows,)`: CIFAR's have a second axis of size 1."""
    y = y.reshape(len(y)) if y.ndim == 2 and y.shape[1] == 1 else y
    return y.astype(np.int64) if y.dtype.kind in "iub" else y.astype(np.float32)
