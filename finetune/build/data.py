"""From the `data` of a recipe to examples and batches, and from `train` to the length of a run and its precision."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.build.audio_source import audio_examples
from finetune.build.augment import with_augmentation
from finetune.build.builder_source import builder_examples
from finetune.build.image_source import image_examples
from finetune.build.keep import with_kept_rows
from finetune.build.keras_source import keras_examples
from finetune.build.named_parts import parts_placed
from finetune.build.source_keys import class_names_of, loss_names
from finetune.build.source_splits import npz_examples
from finetune.build.table_source import table_examples
from finetune.build.tfds_source import tfds_examples
from finetune.build.tfrecord_source import tfrecord_examples
from finetune.data.batches import measurement_batches
from finetune.data.examples import Examples, make_examples
from finetune.data.labels import class_weights, names_alike
from finetune.data.targets import number_text_targets
from finetune.errors import DataError, RecipeError
from finetune.groups.rate_spacing import length_in_steps
from finetune.keras_private import fresh_names
from finetune.kernels.native_kernels import NativeLayers, with_kernels
from finetune.models.builders import call_builder
from finetune.recipe.error_places import located_at
from finetune.recipe.loader import place_of, placed
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class RunLength:
    """The length of a run, or of a phase of it. A step is a batch.

    Attributes:
        epochs: Epochs begun.
        steps_per_epoch: Batches in a whole epoch.
        total_steps: Batches in all where the last epoch is cut short; `None` where every epoch is whole.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int | None = None

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.epochs * self.steps_per_epoch if self.total_steps is None else self.total_steps

    def in_steps(self, amount: float, unit: str) -> int:
        """Converts a length in `steps`, `epochs` or as a `fraction` of this length to whole steps, at least 1."""
        return length_in_steps(amount, unit, steps_per_epoch=self.steps_per_epoch, total_steps=self.steps)


@contextmanager
def precision(recipe: Recipe) -> Iterator[NativeLayers]:
    """Sets what Keras keeps for the whole process: seed, dtype policy, and the numbers in the names of layers.

    What a recipe builds in the block depends on the recipe alone, not on what the process did before. What it traces
    there runs the kernels that the recipe asks for; the block is that of the layers that do. The former policy is set
    again afterwards.

    Raises:
        RecipeError: The recipe asks for mixed precision of a model that is loaded from a file.
    """
    mixed = recipe.train.mixed_precision
    if mixed == "auto":  # where nothing is trained; `with_measured_precision` comes before what trains
        mixed = False
    if mixed and recipe.model.keras_file:
        raise RecipeError(
            f"{place_of(recipe, 'train', 'mixed_precision')}: a model from a file keeps the precision it was saved "
            f"with. The recipe says `keras_file` and `train.mixed_precision: {mixed}`. Use a `builder` and restore the "
            "weights, or remove `train.mixed_precision`."
        )
    before = keras.config.dtype_policy()
    # Before the model is built: fresh weights follow the seed, and each layer takes the policy when it is made.
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(f"mixed_{mixed}" if mixed else "float32")
    try:
        with fresh_names(), with_kernels(recipe.train.kernels) as native:
            yield native
    finally:
        keras.config.set_dtype_policy(before)


# How examples are made of each source, by its key: from the recipe, the value of the key, and the network.
_EXAMPLES_OF: dict[str, Callable[[Recipe, Any, keras.Model | None], Examples]] = {
    "npz": lambda recipe, file, network: npz_examples(recipe, file),
    "images": image_examples,
    "table": table_examples,
    "audio": audio_examples,
    "keras_dataset": keras_examples,
    "tfds": tfds_examples,
    "tfrecord": tfrecord_examples,
    "builder": builder_examples,
}


@located_at("data")
def build_examples(recipe: Recipe, network: keras.Model | None = None) -> Examples:
    """Reads or makes the examples, and splits and weights them as the recipe asks.

    Args:
        recipe: The recipe.
        network: The network, whose input says how large images are where the recipe does not.

    Raises:
        FinetuneError: The examples cannot be read, do not fit together, or cannot be split as the recipe says.
    """
    source = recipe.data
    name = next(name for name in _EXAMPLES_OF if getattr(source, name))  # the schema requires exactly one source
    with placed(recipe, "data", name):
        value = call_builder(source.builder, source.arguments) if source.builder else getattr(source, name)
        with parts_placed(recipe):
            examples = _EXAMPLES_OF[name](recipe, value, network)
    with placed(recipe, "train", "loss"):
        examples = number_text_targets(examples, loss_names(recipe))
    examples = _with_class_weight(recipe, _with_validation_rows(recipe, _with_warning_of_names(recipe, examples)))
    return with_augmentation(recipe, with_kept_rows(recipe, examples))


def _with_warning_of_names(recipe: Recipe, examples: Examples) -> Examples:
    """Warns of classes whose names are alike, unless the recipe itself names the classes."""
    targets = examples.source.get("target")
    outputs = targets.values() if isinstance(targets, Mapping) else ()
    several = [about["class_names"] for about in outputs if isinstance(about, Mapping) and "class_names" in about]
    alike = [found for names in (examples.class_names, *several) if (found := names_alike(names))]
    if not alike or class_names_of(recipe):
        return examples
    warning = (
        "Classes whose names differ by upper case, spaces, hyphens or underscores alone are different classes: "
        f"{'; '.join(alike)}. If they are one, write them alike"
    )
    return replace(examples, source={**examples.source, "warnings": [*examples.source.get("warnings", ()), warning]})


def _with_class_weight(recipe: Recipe, examples: Examples) -> Examples:
    weights = recipe.data.class_weight
    if not weights:
        return examples
    with placed(recipe, "data", "class_weight"):
        if not isinstance(examples.y_train, np.ndarray):
            raise DataError("it is for a network with a single output and its targets in memory. Remove it.")
        of_rows = class_weights(examples.y_train, weights, examples.class_names)
        if examples.weights_train is not None:
            of_rows = of_rows * np.asarray(examples.weights_train, np.float32)  # as scikit-learn has it
    return replace(examples, weights_train=of_rows)


def _with_validation_rows(recipe: Recipe, examples: Examples) -> Examples:
    """Takes `train.validation_fraction` of the training rows off their end, as Keras' `validation_split` does."""
    fraction, total = recipe.train.validation_fraction, len(examples.train)
    if not fraction:
        return examples
    rows = floor(total * (1.0 - fraction))  # written as Keras writes it: another order of operations rounds otherwise
    wrong = None
    if examples.x_validation is not None:
        wrong = "is set, but the data already have validation rows. Remove one of the two"
    elif rows in (0, total):
        wrong = f"leaves {rows} of {total} rows to train on. Both parts need at least one row: choose another fraction"
    if wrong:
        place = place_of(recipe, "train", "validation_fraction")
        raise RecipeError(f"{place}: `train.validation_fraction: {fraction}` {wrong}.")
    train, validation = examples.train.select(slice(rows)), examples.train.select(slice(rows, None))
    places = dict(examples.places)
    if places:
        places |= {"train": places["train"][:rows], "validation": places["train"][rows:]}
    source = dict(examples.source)
    if lacking := _classes_without_validation(examples, train.y, validation.y):
        source["warnings"] = [*source.get("warnings", ()), lacking]
    about = {"class_names": examples.class_names, "source": source, "places": places}
    return make_examples(train, examples.test, validation, **about)


def _classes_without_validation(examples: Examples, trained: Any, validated: Any) -> str:
    """Says where rows lie class by class, so that those at the end are of few classes; empty where they do not."""
    if not all(isinstance(y, np.ndarray) and y.dtype.kind in "iu" and y.ndim == 1 for y in (trained, validated)):
        return ""
    found, lacking = np.unique(validated), np.setdiff1d(trained, validated)
    if not examples.class_names or len(lacking) <= len(found):
        return ""
    return (
        f"`train.validation_fraction` takes the end of the rows, which has {len(found)} of {len(found) + len(lacking)} "
        "classes: the rows lie class by class. Write `data.split: {validation: 0.2}`, a share of each class"
    )


def batch_rows(recipe: Recipe) -> int:
    """Returns the rows in a batch, of a recipe in which `auto` has become a number."""
    assert recipe.train.batch_size != "auto"
    return recipe.train.batch_size


def steps_per_epoch(recipe: Recipe, examples: Examples) -> int:
    """Returns the number of batches in an epoch, as Keras counts them: the last batch may be smaller."""
    return ceil(len(examples.train) / batch_rows(recipe))


def build_batches(recipe: Recipe, examples: Examples) -> tf.data.Dataset:
    """Makes shuffled full batches of the training rows, for measurements."""
    options: Any = {"batch_size": batch_rows(recipe), "seed": recipe.seed}
    options |= {"sample_weight": examples.weights_train, "augmentation": examples.augmentation}
    return measurement_batches(examples.x_train, examples.y_train, **options)


def build_rows(recipe: Recipe, examples: Examples) -> tf.data.Dataset:
    """Makes batches of all training rows, in their order."""
    return examples.train.batches(batch_rows(recipe))
