"""A trial before anything is written: two rows go through the model, its loss and its metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.examples import Examples
from finetune.errors import DataError, FinetuneError, quote, reason


def try_examples(model: keras.Model, examples: Examples) -> None:
    """Sends two rows through the model, its loss and its metrics, and checks all labels of a sparse loss.

    Args:
        model: A compiled model; nothing in it changes.
        examples: What it will be trained and tested on.

    Raises:
        DataError: The examples do not fit the model, its loss or its metrics.
    """
    x, y = examples.train.first(2)
    _check_shape(model, x)
    _check_labels(model, examples)
    with explained(DataError, "Examples must fit the model, its loss and its metrics.", _advice(model, y)):
        outputs = model(x, training=False)
        model.compute_loss(x, y, outputs, training=False)
        model.compute_metrics(x, y, outputs)
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


def _check_labels(model: keras.Model, examples: Examples) -> None:
    sizes = _sizes(model, "output_shape")
    # A loss may be a name, an object or a function.
    loss = getattr(model.loss, "name", None) or getattr(model.loss, "__name__", model.loss)
    if loss != "sparse_categorical_crossentropy" or not sizes or sizes[-1] is None:
        return
    allowed = {*range(sizes[-1]), getattr(model.loss, "ignore_class", None)}
    for name in ("y_train", "y_test", "y_validation"):
        labels = getattr(examples, name)
        known = np.unique(labels).tolist() if isinstance(labels, np.ndarray) else []
        wrong = [label for label in known if label not in allowed]
        if wrong:
            raise DataError(
                "Labels must be the numbers of the classes, from 0. "
                f"The model gives {sizes[-1]} classes, so they are `0` to `{sizes[-1] - 1}`; `{name}` also holds "
                f"{quote(wrong)}. Number the labels from 0, or give the model's head more classes."
            )


def _advice(model: keras.Model, y: Any) -> str:
    sizes = _sizes(model, "output_shape")
    output = f"the model gives {_shown(sizes)}" if sizes is not None else f"the model is `{model.name}`"
    targets = _shown(tuple(y.shape[1:])) if tf.is_tensor(y) else f"{len(tf.nest.flatten(y))} arrays"
    return f"The targets have {targets} per row, {output}. Check that `loss` fits the targets."


def _sizes(model: keras.Model, name: str) -> tuple[int | None, ...] | None:
    """Returns a shape of the model without the batch axis; `None` where there are several, or none is known."""
    shape: Any = getattr(model, name, None) if isinstance(model, keras.Function | keras.Sequential) else None
    is_single = isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)
    return shape[1:] if is_single else None


def _shown(sizes: tuple[int | None, ...]) -> str:
    return f"`{'x'.join('?' if size is None else str(size) for size in sizes)}` values" if sizes else "a single value"
