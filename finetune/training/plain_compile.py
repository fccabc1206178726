"""How a saved model is compiled when plain Keras opens it: with its loss, its metrics and a fresh plain optimizer.

The optimizer of a run belongs to its groups and to this package; its state lies in `checkpoints/`. The file names SGD
instead, which has no slots, so that the file is as large as the weights and `evaluate` and `fit` work at once. What
plain Keras does not have, such as a metric whose targets are converted, is left out, and a sentence says so.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

import keras

from finetune.keras_private import compile_arguments, function_arguments
from finetune.training.fitted_metrics import Conversion, FittedMetric
from finetune.training.smoothed_loss import SmoothedSparseCategoricalCrossentropy


class PlainCompile(NamedTuple):
    """What plain Keras compiles a saved model with.

    Attributes:
        config: As `keras.Model.get_compile_config` returns it; empty where the model is not compiled.
        sentences: What plain Keras does not have, and what it has in its place.
    """

    config: dict[str, Any]
    sentences: tuple[str, ...]


def plain_compile(model: keras.Model) -> PlainCompile:
    """Returns what plain Keras compiles a model with.

    Args:
        model: A model. Where it is not compiled, or compiles itself in a way of its own, the config is empty.
    """
    # `Functional` and `Sequential` inherit `compile`. Keras cannot call another one when it loads the file, and warns.
    is_custom = type(model).compile is not keras.Model.compile
    arguments = compile_arguments(model) if model.compiled and not is_custom else {}
    if not arguments:
        return PlainCompile({}, ())
    sentences: list[str] = []
    config = {name: _plain(value, sentences) for name, value in arguments.items() if name != "optimizer"}
    config["optimizer"] = keras.saving.serialize_keras_object(_optimizer(model))
    # How steps were made concerns the run alone.
    return PlainCompile({**config, "steps_per_execution": 1, "run_eagerly": False}, tuple(sentences))


def _plain(value: Any, sentences: list[str]) -> Any:
    """Returns a loss or metric, or a structure of them, serialized, without what plain Keras does not have."""
    if isinstance(value, list | tuple):
        return [_plain(each, sentences) for each in value if not _is_left_out(each, sentences)]
    if isinstance(value, dict):
        return {name: _plain(each, sentences) for name, each in value.items()}
    if isinstance(value, FittedMetric):  # Keras, too, gives targets that are arrays the axis that is added
        value = value.metric
    if isinstance(value, SmoothedSparseCategoricalCrossentropy):
        sentences.append(
            "its loss is `sparse_categorical_crossentropy` without label smoothing, which Keras has for one-hot targets"
        )
        options = {"from_logits": value.from_logits, "ignore_class": value.ignore_class, "axis": value.axis}
        value = keras.losses.SparseCategoricalCrossentropy(name=value.name, reduction=value.reduction, **options)
    serialized: Any = keras.saving.serialize_keras_object(value)
    if isinstance(value, keras.losses.Loss | keras.metrics.Metric) and type(value).__module__.startswith("keras."):
        # Keras' configs lack `delta` of Huber and `axis` of some others, which would silently become the defaults.
        taken = inspect.signature(type(value)).parameters
        lost = {name: argument for name, argument in function_arguments(value).items() if name in taken}
        serialized["config"] = lost | serialized["config"]
    return serialized


def _is_left_out(value: Any, sentences: list[str]) -> bool:
    if not isinstance(value, FittedMetric) or value.convert == Conversion(value.convert.outputs, add_axis=True):
        return False
    sentences.append(f"the metric `{value.name}` is left out, as Keras takes other targets or outputs for it")
    return True


def _optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Returns SGD at the present rate of the last group, or at Keras' default where that is 0 or not known."""
    rate = getattr(model.optimizer, "learning_rate", None)
    try:
        rate = float(keras.ops.convert_to_numpy(rate))  # pyright: ignore[reportArgumentType] - may be of any type
    except (TypeError, ValueError):
        rate = 0.0
    return keras.optimizers.SGD(learning_rate=rate) if rate > 0 and isfinite(rate) else keras.optimizers.SGD()


@contextmanager
def compiled_plainly(model: keras.Model, plain: PlainCompile) -> Iterator[None]:
    """Lets a model be saved, during the block, as if it had been compiled with plain Keras.

    Args:
        model: The model.
        plain: What `plain_compile` returned.
    """
    optimizer, was_compiled = model.optimizer, model.compiled
    model.optimizer, model.compiled = None, bool(plain.config)
    if plain.config:
        fresh: Any = keras.saving.deserialize_keras_object(plain.config["optimizer"])
        fresh.build(model.trainable_variables)
        model.optimizer = fresh
        model.get_compile_config = lambda: plain.config
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, was_compiled
        if plain.config:
            del model.get_compile_config
