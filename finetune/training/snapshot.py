"""A copy in memory of everything that training changes, for measurements that leave no trace."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from finetune import keras_private


@contextmanager
def no_trace(model: keras.Model, more: Iterable[Any] = ()) -> Iterator[int]:
    """Restores, bit for bit, everything that the block changes, also after an error or Ctrl-C.

    Restored are the weights, moving statistics and seeds of the model, the slots, counters and rates of its optimizer,
    its metrics, the random state of Python, NumPy and Keras, and the seeds that TensorFlow gives to eager operations.

    Args:
        model: A compiled model whose optimizer is built.
        more: Variables that the model does not list and the block changes, such as a `tf.Variable` that a layer holds,
            or the slots of a second optimizer.

    Yields:
        The size of the copy in bytes.
    """
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables, *more]
    # An optimizer may hold variables of the model, such as seeds, and Keras' variables hold those of TensorFlow: each
    # is restored once.
    variables = list({id(_holder(variable)): variable for variable in reversed(variables)}.values())
    values = [variable.numpy() for variable in variables]
    try:
        with unchanged_random_state():
            yield sum(value.nbytes for value in values)
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _holder(variable: Any) -> Any:
    return keras_private.stored_value(variable) if isinstance(variable, keras.Variable) else variable


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restores the random state of Python, NumPy and Keras, and TensorFlow's seeds of eager operations."""
    before = _random_state()
    try:
        yield
    finally:
        _set_random_state(before)


def _random_state() -> dict[str, Any]:
    eager, seeds = keras_private.eager_generator(), keras_private.seed_generator()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "tensorflow": eager.getstate() if eager else None,
        "keras": seeds.state.numpy() if seeds is not None else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if state["tensorflow"] is not None:
        keras_private.eager_generator().setstate(state["tensorflow"])
    if state["keras"] is not None:
        keras_private.seed_generator().state.assign(state["keras"])
