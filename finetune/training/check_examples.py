"""A trial before anything is written: do the examples go through the model and its loss?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from finetune.data.arrays import Examples
from finetune.errors import DataError, FinetuneError, quote, reason


def try_examples(model: keras.Model, examples: Examples) -> None:
    """Sends two rows through the model, its loss and its metrics, and checks all labels of a sparse loss.

    Args:
        model: A compiled model; nothing of it changes.
        examples: What it shall be trained and tested on.

    Raises:
        DataError: If they do not fit.
    """
    _check_shape(model, examples.x_train)
    _check_labels(model, examples)
    x, y = examples.x_train[:2], examples.y_train[:2]
    with explained(DataError, "Examples must fit the model, its loss and its metrics.", _advice(model, y)):
        outputs = model(x, training=False)
        model.compute_loss(x, y, outputs, training=False)
        model.compute_metrics(x, y, outputs)
        model.reset_metrics()


@contextmanager
def explained(kind: type[FinetuneError], rule: str, advice: str) -> Iterator[None]:
    """Turns any error but our own into one of `kind`: the rule, what Keras says in one line, and advice."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        raise kind(f"{rule} {type(error).__name__}: {reason(error)}. {advice}") from error


def _check_shape(model: keras.Model, x: np.ndarray) -> None:
    wanted, got = _sizes(model, "input_shape"), x.shape[1:]
    if wanted is None:  # several inputs, or a model that takes what comes
        return
    if len(wanted) != len(got) or any(size not in (None, other) for size, other in zip(wanted, got, strict=True)):
        raise DataError(
            f"Examples must have the shape that the model takes. `{model.name}` takes {_shown(wanted)} per row; the "
            f"data have {_shown(got)}. Change the data or the model."
        )


def _check_labels(model: keras.Model, examples: Examples) -> None:
    sizes = _sizes(model, "output_shape")
    loss = getattr(model.loss, "name", None) or getattr(model.loss, "__name__", model.loss)
    if loss != "sparse_categorical_crossentropy" or not sizes or sizes[-1] is None:
        return
    allowed = {*range(sizes[-1]), getattr(model.loss, "ignore_class", None)}
    for name in ("y_train", "y_test", "y_validation"):
        labels = getattr(examples, name)
        wrong = [] if labels is None else [label for label in np.unique(labels).tolist() if label not in allowed]
        if wrong:
            raise DataError(
                f"Labels count the classes from 0. The model gives {sizes[-1]} classes, so they are `0` to "
                f"`{sizes[-1] - 1}`; `{name}` also holds {quote(wrong)}. Number them anew, or widen the model's head."
            )


def _advice(model: keras.Model, y: np.ndarray) -> str:
    sizes = _sizes(model, "output_shape")
    output = f"the model gives {_shown(sizes)}" if sizes is not None else f"the model is `{model.name}`"
    return f"The targets have {_shown(y.shape[1:])} per row, {output}. Is it the right `loss`?"


def _sizes(model: keras.Model, name: str) -> tuple[int | None, ...] | None:
    """Returns one of the model's shapes without the batch; `None` if it has several, or tells none."""
    shape: Any = getattr(model, name, None) if isinstance(model, keras.Function | keras.Sequential) else None
    is_one = isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)
    return shape[1:] if is_one else None


def _shown(sizes: tuple[int | None, ...]) -> str:
    return f"`{'x'.join('?' if size is None else str(size) for size in sizes)}` values" if sizes else "one value"
