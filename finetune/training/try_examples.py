"""A trial before anything is written: a few rows go through the model, its loss and its metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.examples import Examples
from finetune.errors import DataError, FinetuneError, quote, reason


@dataclass(frozen=True)
class Trial:
    """A few rows, and what the model makes of them.

    Attributes:
        x: Inputs of the rows.
        y: Their targets.
        outputs: Outputs of the model in inference mode.
    """

    x: Any
    y: Any
    outputs: Any


def try_model(model: keras.Model, examples: Examples) -> Trial:
    """Sends a few training rows through a model; nothing in it changes.

    Raises:
        DataError: The examples do not fit the model.
    """
    # Another number of rows than of classes: else targets of a wrong shape could be spread over the outputs.
    sizes = _sizes(model, "output_shape") or ()
    x, y = examples.train.first(next(rows for rows in (2, 3, 5, 7, 11, 13) if rows not in sizes))
    _check_shape(model, x)
    _check_real(model, x)
    with explained(DataError, "Examples must fit the model.", f"{_forms(model, y)} Change the data or the model."):
        return Trial(x, y, model(x, training=False))


def try_examples(model: keras.Model, examples: Examples, trial: Trial | None = None) -> None:
    """Sends a few rows through the model, its loss and its metrics, and checks all labels of a sparse loss.

    Args:
        model: A compiled model; nothing in it changes.
        examples: What it will be trained and tested on.
        trial: What `try_model` returned, where that is known.

    Raises:
        DataError: The examples do not fit the model, its loss or its metrics.
    """
    trial = trial or try_model(model, examples)
    x, y = trial.x, trial.y
    _check_labels(model, examples)
    with explained(DataError, "Examples must fit the model and its loss.", _advice(model, y)):
        model.compute_loss(x, y, trial.outputs, training=False)
    advice = "Choose metrics for targets and outputs of this form."
    with explained(DataError, "Examples must fit the metrics.", f"{_forms(model, y)} {advice}"):
        model.compute_metrics(x, y, trial.outputs)
        model.reset_metrics()


@contextmanager
def explained(kind: type[FinetuneError], rule: str, advice: str) -> Iterator[None]:
    """Turns the errors of other packages in the block into errors of `finetune`, whose message is a single line.

    Args:
        kind: The class of the error to raise.
        rule: The rule that was broken, as a sentence.
        advice: What to do, as sentences.

    Raises:
        FinetuneError: Of class `kind`, for any error that is not a `FinetuneError` itself: the rule, what the other
            package says, and the advice.
    """
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        raise kind(f"{rule} {type(error).__name__}: {reason(error)}. {advice}") from error


def _check_shape(model: keras.Model, x: Any) -> None:
    model_sizes = _sizes(model, "input_shape")
    # Several inputs, or a subclassed model, which only shows its shapes when it is called.
    if model_sizes is None or not tf.is_tensor(x):
        return
    sizes = tuple(x.shape[1:])
    fits = len(model_sizes) == len(sizes) and all(
        model_size in (None, size) for model_size, size in zip(model_sizes, sizes, strict=True)
    )
    if not fits:
        raise DataError(
            f"Examples must have the shape that the model takes. `{model.name}` takes {_shown(model_sizes)} per row; "
            f"the data have {_shown(sizes)}. Change the data or the model."
        )


def _check_real(model: keras.Model, x: Any) -> None:
    """Refuses complex numbers for real inputs: TensorFlow would drop their imaginary part without a word."""
    complex_parts = [part for part in tf.nest.flatten(x) if tf.is_tensor(part) and part.dtype.is_complex]
    inputs: Any = getattr(model, "inputs", None) or ()
    if complex_parts and inputs and not any("complex" in str(tensor.dtype) for tensor in inputs):
        raise DataError(
            f"Inputs must be of the kind that the model takes. `{model.name}` takes real numbers; the data have "
            f"`{complex_parts[0].dtype.name}`. Give it the real and the imaginary part, or amplitude and phase, as two "
            "channels."
        )


def _check_labels(model: keras.Model, examples: Examples) -> None:
    # A loss may be a name, an object or a function.
    loss = getattr(model.loss, "name", None) or getattr(model.loss, "__name__", model.loss)
    sizes = _sizes(model, "output_shape")
    if loss == "sparse_categorical_crossentropy" and sizes and sizes[-1] is not None:
        allowed = {*range(sizes[-1]), getattr(model.loss, "ignore_class", None)}
        rule = "Labels must be the numbers of the classes, from 0."
        bounds = f"The model gives {sizes[-1]} classes, so they are `0` to `{sizes[-1] - 1}`"
        advice = "Number the labels from 0, or give the model's head more classes."
    elif loss in ("binary_crossentropy", "binary_focal_crossentropy"):
        allowed = None  # every number between, as smoothed labels are
        rule, bounds = f"The labels of `{loss}` must be from 0 to 1.", "Outside of that its value falls without end"
        advice = "Number the labels 0 and 1, or take the loss of a regression, such as `mse`."
    else:
        return
    for name in ("y_train", "y_test", "y_validation"):
        labels = getattr(examples, name)
        known = np.unique(labels).tolist() if isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf" else []
        wrong = [label for label in known if (label not in allowed if allowed else not 0 <= label <= 1)]
        if wrong:
            raise DataError(f"{rule} {bounds}; `{name}` also holds {quote(wrong)}. {advice}")


def _advice(model: keras.Model, y: Any) -> str:
    return f"{_forms(model, y)} Check that `loss` fits the targets."


def _forms(model: keras.Model, y: Any) -> str:
    sizes = _sizes(model, "output_shape")
    output = f"the model gives {_shown(sizes)}" if sizes is not None else f"the model is `{model.name}`"
    targets = _shown(tuple(y.shape[1:])) if tf.is_tensor(y) else f"{len(tf.nest.flatten(y))} arrays"
    return f"The targets have {targets} per row, {output}."


def _sizes(model: keras.Model, name: str) -> tuple[int | None, ...] | None:
    """Returns a shape of the model without the batch axis; `None` where there are several, or none is known."""
    shape: Any = getattr(model, name, None) if isinstance(model, keras.Function | keras.Sequential) else None
    is_single = isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)
    return shape[1:] if is_single else None


def _shown(sizes: tuple[int | None, ...]) -> str:
    return f"`{'x'.join('?' if size is None else str(size) for size in sizes)}` values" if sizes else "a single value"
