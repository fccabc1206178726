"""A copy in memory of everything that training changes, for measurements that leave no trace."""

import random
from collections.abc import Iterable, Iterator, Mapping
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
    variables = list({id(holder(variable)): variable for variable in reversed(variables)}.values())
    values = [variable.numpy() for variable in variables]
    try:
        with unchanged_random_state():
            yield sum(value.nbytes for value in values)
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def holder(variable: Any) -> Any:
    """Returns the `tf.Variable` that a variable of Keras holds; another variable itself."""
    return keras_private.stored_value(variable) if isinstance(variable, keras.Variable) else variable


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restores the random state of Python, NumPy and Keras, and TensorFlow's seeds of eager operations."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """Returns the random state of Python, NumPy and Keras, and of TensorFlow's seeds of eager operations."""
    eager, seeds = keras_private.eager_generator(), keras_private.seed_generator()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "tensorflow": eager.getstate() if eager else None,
        "keras": seeds.state.numpy() if seeds is not None else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts a random state back that `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    # Either generator may exist only since, or not yet in a process that goes on with the training of another.
    if state["tensorflow"] is not None and (eager := keras_private.eager_generator()):
        eager.setstate(state["tensorflow"])
    if state["keras"] is not None and (seeds := keras_private.seed_generator()) is not None:
        seeds.state.assign(state["keras"])


def seeds(model: Any) -> list[Any]:
    """Returns the variables of a model that are no weights: the states of its random layers."""
    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [variable for variable in model.variables if id(variable) not in known]
