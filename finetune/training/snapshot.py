"""A copy in memory of everything that training changes, for measurements that leave no trace."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from finetune import keras_private


@contextmanager
def no_trace(model: keras.Model) -> Iterator[int]:
    """Restores, bit for bit, everything that the block changes, also after an error or Ctrl-C.

    Restored are the weights, moving statistics and seeds of the model, the slots, counters and rates of its optimizer,
    its metrics, the random state of Python, NumPy and Keras, and the seeds that TensorFlow gives to eager operations.

    Args:
        model: A compiled model whose optimizer is built.

    Yields:
        The size of the copy in bytes.
    """
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    # An optimizer may hold variables of the model, such as seeds: each is restored once.
    variables = list({id(variable): variable for variable in variables}.values())
    values = [variable.numpy() for variable in variables]
    randomness = _random_state()
    try:
        yield sum(value.nbytes for value in values)
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        _set_random_state(randomness)


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
