"""The loss and the metrics of a `FineTuner` that was given none: chosen by the targets, as `loss: auto` of a recipe."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from finetune.data.targets import kind_of_array, loss_for, metrics_for
from finetune.errors import DataError
from finetune.models.output_activation import PROBABILITIES, output_activations
from finetune.models.output_names import by_output_name, output_names

_ROWS = 8  # whose outputs show whether they are probabilities, where the graph does not
_WRITE = "Pass `loss=` and `metrics=`, as to `model.compile`"


class FittingLoss(NamedTuple):
    """A loss and metrics as `compile` takes them.

    Attributes:
        loss: A loss, or one for each output by its name.
        metrics: Metrics, likewise.
        reason: What was chosen, and by which targets, as a sentence.
    """

    loss: Any
    metrics: Any
    reason: str


def fitting_loss(model: keras.Model, x: Any, y: Any, class_names: tuple[str, ...] = ()) -> FittingLoss:
    """Chooses loss and metrics by the targets, and whether they take logits by what the network ends in.

    Args:
        model: A built model.
        x: Inputs in memory; or a dataset, of which only the types of its elements are looked at.
        y: Targets in memory; `None` beside a dataset.
        class_names: Names of the classes, where the dataset has them.

    Raises:
        DataError: The targets do not say which loss fits.
    """
    if y is None:
        kinds = {"": _kind_of_dataset(model, x, class_names)}
        outputs = {}
    else:
        few = keras.tree.map_structure(lambda part: tf.convert_to_tensor(part[:_ROWS]), x)
        outputs = by_output_name(model, model(few, training=False))
        kinds = {
            name: kind_of_array(np.asarray(values), _width(model, outputs.get(name)))
            for name, values in by_output_name(model, y).items()
        }
    activations = dict(zip(output_names(model), output_activations(model), strict=False))
    losses, metrics, sentences = {}, {}, []
    for name, (kind, reason) in kinds.items():
        loss = loss_for(kind, _width(model, outputs.get(name)))
        logits = "crossentropy" in loss and _are_logits(activations.get(name), outputs.get(name))
        losses[name] = _loss(loss, logits)
        # The first is a name; `f1_score` of labels takes them in another form than `fit` may have them.
        metrics[name] = [_metric(metrics_for(kind)[0], loss, logits)]
        of_output = f" of `{name}`" if name else ""
        sentences.append(f"loss{of_output}: `{loss}`{' of logits' if logits else ''}, chosen by the targets: {reason}")
    if list(losses) == [""]:
        return FittingLoss(losses[""], metrics[""], sentences[0])
    return FittingLoss(losses, metrics, "; ".join(sentences))


def _kind_of_dataset(model: keras.Model, x: Any, class_names: tuple[str, ...]) -> tuple[str, str]:
    """Decides what the targets of a dataset are by their type alone."""
    spec = getattr(x, "element_spec", None)
    target = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    width = _width(model, None)
    if isinstance(target, tf.TensorSpec) and target.shape.rank is not None:
        size = target.shape[-1] if target.shape.rank > 1 else 1
        if target.dtype.is_integer and size == 1 and (width or 0) > 1:
            return "classes", f"whole numbers, and a network with {width} outputs"
        if class_names and size == len(class_names):
            return "one_hot", f"a value for each of {size} classes"
        if len(class_names) == 2 and size == 1 and width == 1:
            return "classes", "numbers of two classes"
    described = f"`{target}`" if target is not None else f"a `{type(x).__name__}`"
    raise DataError(
        "A loss is chosen by targets in memory, or by whole numbers in a dataset for a network with several outputs. "
        f"Received {described}. {_WRITE}: `FineTuner(model, data, loss=..., metrics=[...])`."
    )


def _width(model: keras.Model, output: Any) -> int | None:
    """Returns the size of the last axis of an output, where that is known."""
    shape: Any = getattr(model, "output_shape", None) if output is None else tuple(output.shape)
    if not isinstance(shape, tuple) or len(shape) < 2 or any(isinstance(part, tuple | list) for part in shape):
        return None
    *_, width = shape
    return width


def _are_logits(activation: str | None, output: Any) -> bool:
    if activation in PROBABILITIES:
        return False
    if activation is not None:
        return True
    if output is None:
        raise DataError(
            "A cross-entropy takes probabilities or logits, and this network does not show which of them it gives. "
            f"{_WRITE}: `loss=keras.losses.SparseCategoricalCrossentropy(from_logits=...)`."
        )
    values = np.asarray(output, np.float64)
    return bool(values.min() < 0 or values.max() > 1)


def _loss(identifier: str, logits: bool) -> Any:
    if not logits:
        return identifier
    kind: Any = {
        "binary_crossentropy": keras.losses.BinaryCrossentropy,
        "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
        "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    }[identifier]
    return kind(from_logits=True)


def _metric(identifier: str, loss: str, logits: bool) -> Any:
    """Returns a metric as `compile` takes it: that of two classes, or of labels, compares logits with 0."""
    if logits and loss == "binary_crossentropy":
        return keras.metrics.BinaryAccuracy(name=identifier, threshold=0.0)
    return identifier
