"""The data of a `FineTuner`: whatever `fit` takes, or `Examples`, as what to train, validate and test on.

Nothing is read here: a dataset of the caller's is opened by `fit` alone. What is known without reading it (the number
of classes of `image_dataset_from_directory`, the types of its elements) comes along.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.batches import steps_per_epoch, training_batches
from finetune.data.examples import Examples, Split, check_examples, leaves
from finetune.data.rows import Rows
from finetune.errors import DataError

_FORMS = (
    "`(x, y)`, arrays beside each other (`FineTuner(model, x, y)`), a `tf.data.Dataset` of batches such as "
    "`keras.utils.image_dataset_from_directory` returns, a pair of such datasets to train and to validate on, a "
    "`keras.utils.PyDataset`, or `finetune.Examples`"
)


@dataclass(frozen=True, eq=False)
class TunerData:
    """What a `FineTuner` trains, validates and tests on.

    Attributes:
        x: Inputs as `fit` takes them; or the training rows of `Examples` whose values are read when they are needed.
        y: Targets of arrays.
        weights: Weights of the rows of arrays.
        batch_size: Rows in a batch; `None` where the data come in batches.
        validation: Rows to validate on, as `fit` takes them; `None` without.
        test: Rows to test on, as `fit` takes them; `None` without.
        class_names: Names of the classes, where they are known.
        seed: Seed of these orders.
        augmentation: How the rows of a `Split` are changed in every epoch.
    """

    x: Any
    y: Any = None
    weights: Any = None
    batch_size: int | None = None
    validation: Any = None
    test: Any = None
    class_names: tuple[str, ...] = ()
    seed: int = 0
    augmentation: Any = field(default=None, repr=False)

    @property
    def is_split(self) -> bool:
        """Whether `x` are rows that are read when they are needed."""
        return isinstance(self.x, Split)

    @property
    def steps(self) -> int | None:
        """Batches in an epoch where `x` are such rows, else `None`: `fit` counts them."""
        return steps_per_epoch(len(self.x), self.batch_size or 1) if self.is_split else None

    def batches(self, first_epoch: int = 0) -> tf.data.Dataset:
        """Returns the batches of such rows, without end."""
        return training_batches(
            self.x.x,
            self.x.y,
            batch_size=self.batch_size or 1,
            seed=self.seed,
            first_epoch=first_epoch,
            sample_weight=self.x.weights,
            augmentation=self.augmentation,
        )

    def inputs(self, first_epoch: int) -> Any:
        """Returns the `x` of `fit`; where batches are made of rows, a generator, which phases read on."""
        return _each(self.batches(first_epoch)) if self.is_split else self.x


def _each(batches: tf.data.Dataset) -> Iterator[Any]:
    yield from batches


def tuner_data(
    data: Any,
    y: Any = None,
    *,
    validation_data: Any = None,
    test_data: Any = None,
    batch_size: int = 32,
    seed: int = 0,
) -> TunerData:
    """Returns what to train, validate and test on.

    Args:
        data: The training rows in any of the forms that `FineTuner` takes.
        y: Targets, where `data` are inputs alone.
        validation_data: Rows to validate on, as `fit` takes them.
        test_data: Rows to test on, in the same forms.
        batch_size: Rows in a batch of arrays or `Examples`, >= 1.
        seed: Seed of the order of rows that are read when they are needed.

    Raises:
        DataError: The data are in none of these forms, or targets are there twice.
    """
    if isinstance(data, Examples):
        given = [name for name, each in {"y": y, "validation_data": validation_data}.items() if each is not None]
        if given:
            raise DataError(
                f"`finetune.Examples` hold targets and validation rows themselves. Received `{given[0]}` as well. "
                "Remove it, or make `Examples` with these rows."
            )
        return _of_examples(check_examples(data), test_data, batch_size, seed)
    more = {"validation": _pair(validation_data), "test": _pair(test_data)}
    if _is_dataset(data):
        if y is not None:
            raise DataError(
                f"A `{type(data).__name__}` yields inputs with their targets. Received `y` as well. Remove `y`, or "
                "pass it as `validation_data=` if it is to validate on."
            )
        return TunerData(data, class_names=_class_names(data), **more)
    if isinstance(data, list | tuple) and y is None:
        if len(data) == 2 and all(map(_is_dataset, data)):
            if validation_data is not None:
                raise DataError(
                    "A pair of datasets is one to train and one to validate on. Received `validation_data` as well. "
                    "Pass the first of the pair, or remove `validation_data`."
                )
            return TunerData(data[0], class_names=_class_names(data[0]), **(more | {"validation": data[1]}))
        if len(data) in (2, 3) and not any(map(_is_dataset, data)):
            x, y, *weights = map(_array, data)
            return TunerData(x, y, weights[0] if weights else None, batch_size, **more)
    if y is not None and not isinstance(data, str):
        return TunerData(_array(data), _array(y), None, batch_size, **more)
    hint = ""
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        hint = (
            " For a folder with a folder of images for each class: "
            f"`keras.utils.image_dataset_from_directory({str(data)!r})`; for everything else "
            f"`finetune new --data {data}` writes a recipe."
        )
    raise DataError(f"A `FineTuner` takes {_FORMS}. Received `{_described(data)}`.{hint}")


def _array(values: Any) -> Any:
    """Returns a list of plain numbers or strings as an array, and everything else as it is."""
    is_plain = isinstance(values, list) and not any(hasattr(part, "shape") for part in keras.tree.flatten(values))
    return np.asarray(values) if is_plain else values


def _of_examples(examples: Examples, test_data: Any, batch_size: int, seed: int) -> TunerData:
    validation = examples.validation and _as_fit_takes(examples.validation, batch_size)
    test = _pair(test_data) if test_data is not None else _as_fit_takes(examples.test, batch_size)
    about: dict[str, Any] = {"batch_size": batch_size, "class_names": examples.class_names, "seed": seed}
    about |= {"validation": validation, "test": test}
    rows = examples.train
    if examples.augmentation is None and _is_in_memory(rows):
        return TunerData(rows.x, rows.y, rows.weights, **about)
    return TunerData(rows, augmentation=examples.augmentation, **about)


def _is_in_memory(split: Split) -> bool:
    """Whether rows are arrays in memory, and no `Rows` or array in a file, which `fit` would read as a whole."""
    parts = [part for array in (split.x, split.y, split.weights) for _, part in leaves("", array) if part is not None]
    return not any(isinstance(part, Rows | np.memmap) for part in parts)


def _as_fit_takes(split: Split, batch_size: int) -> Any:
    if not _is_in_memory(split):
        return split.batches(batch_size)
    return (split.x, split.y) if split.weights is None else (split.x, split.y, split.weights)


def _is_dataset(data: Any) -> bool:
    return isinstance(data, tf.data.Dataset | keras.utils.PyDataset) or hasattr(data, "__next__")


def _pair(data: Any) -> Any:
    """Returns rows to validate or test on as `fit` takes them, where lists are tuples."""
    if isinstance(data, Examples):
        raise DataError(
            "Rows to validate or test on are `(x, y)` or a dataset. Received `finetune.Examples`. Pass these as `data`."
        )
    return tuple(data) if isinstance(data, list) else data


def _class_names(data: Any) -> tuple[str, ...]:
    """Returns the names that `image_dataset_from_directory` and its like leave on their dataset."""
    return tuple(map(str, getattr(data, "class_names", None) or ()))


def _described(data: Any) -> str:
    if isinstance(data, list | tuple):
        return f"{type(data).__name__} of {len(data)}: {', '.join(type(each).__name__ for each in data[:5])}"
    if isinstance(data, Mapping):
        return f"dict of {', '.join(map(str, list(data)[:5]))}"
    return str(data)[:80] if isinstance(data, str) or hasattr(data, "__fspath__") else type(data).__name__
