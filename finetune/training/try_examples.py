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
from finetune.machine_failures import raise_machine_failure
from finetune.training.target_checks import check_targets


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
    _check_text(model, x)
    with explained(DataError, "Examples must fit the model.", f"{_forms(model, y)} Change the data or the model."):
        try:
            return Trial(x, y, model(x, training=False))
        except Exception as error:  # of TensorFlow or Keras: shown below where the number of tokens is not the cause
            raise_machine_failure(error, "Running the model on a few rows")
            _check_length(model, x)
            raise


def try_examples(model: keras.Model, examples: Examples, trial: Trial | None = None) -> None:
    """Sends a few rows through the model, its loss and its metrics, and checks the targets.

    Args:
        model: A compiled model; nothing in it changes.
        examples: What it will be trained and tested on.
        trial: What `try_model` returned, where that is known.

    Raises:
        DataError: The examples do not fit the model, its loss or its metrics.
    """
    trial = trial or try_model(model, examples)
    x, y = trial.x, trial.y
    check_targets(model, examples, y, trial.outputs)
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
        raise_machine_failure(error, "Running the model on a few rows")
        raise kind(f"{rule} {type(error).__name__}: {reason(error)}. {advice}") from error


def _check_text(model: keras.Model, x: Any) -> None:
    """Refuses text, such as paths of files, where the network takes numbers."""
    inputs = getattr(model, "inputs", None) if isinstance(model, keras.Function | keras.Sequential) else None
    takes_text = inputs is None or any(keras.backend.standardize_dtype(each.dtype) == "string" for each in inputs)
    for array in [] if takes_text else tf.nest.flatten(x):
        if array.dtype == tf.string:
            shown = [each.decode(errors="replace") for each in np.asarray(array).reshape(-1)[:2].tolist()]
            raise DataError(
                f"`{model.name}` takes numbers. The inputs are text, such as {quote(shown)}. Paths of images are read "
                "from a table (`types: {column: image}`) or a folder (`images:`); text becomes ids by a `tokenizer`."
            )


class LengthError(DataError):
    """Rows have more tokens than the network has positions."""


def _check_length(model: keras.Model, x: Any) -> None:
    """Says how many tokens a network takes, where rows have more: a table of positions has an end."""
    ids = [array for array in tf.nest.flatten(x) if array.dtype.is_integer and array.shape.rank == 2]
    if not ids or max(array.shape[1] for array in ids) < 2:
        return
    length = max(array.shape[1] for array in ids)

    def takes(tokens: int) -> bool:
        cut = tf.nest.map_structure(lambda array: array[:, :tokens] if array.shape.rank == 2 else array, x)
        try:
            model(cut, training=False)
        except Exception as error:  # of TensorFlow or Keras: the caller shows it where length is not the cause
            raise_machine_failure(error, "Running the model on a row")
            return False
        return True

    if not takes(1):
        return
    low, high = 1, length  # the first is taken, the second is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    raise LengthError(
        f"A row has at most as many tokens as the network has positions. `{model.name}` takes {low:,} tokens, and the "
        f"rows have {length:,}. Set `data.tokenizer.length: {low}`, or cut the rows."
    )


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
