"""Weights that lie in a buffer during a call: how layers see them there, and which of them must not lie there.

While a step is traced, the variables of the layers hold slices of the buffers, which are tensors, in place of their
`tf.Variable`s (`shown`). So whatever reads a weight through its Keras variable sees the present value: the layer,
another one that shares the weight, a regularizer, a loss. Everything else is as in Keras' own step: state is written at
once, losses are kept by the layers.

A slice may take the place of a variable only if nothing goes past it. The graph of the traced step shows what does:

- the gradient with respect to the slice is missing or sparse (`without_dense_gradient`): a layer reads the
  `tf.Variable` itself, or gathers rows, and the fused update takes dense gradients alone;
- a `tf.custom_gradient` uses the slice, and does not have it as an argument (`in_custom_gradients`): TensorFlow gives
  gradients to arguments and to variables, not to other tensors. Keras' rematerialized layers are such functions;
- the step uses the `tf.Variable` (`captured`): who reads it gets the value from before the call, and what is written to
  it is lost.

A layer that assigns to its weight through Keras fails while it is traced, since a tensor has no `assign`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from finetune.keras_private import captures, custom_gradients, set_stored_value, stored_value

Slices = Sequence[tuple[keras.Variable, tf.Tensor]]


@contextmanager
def shown(slices: Slices) -> Iterator[None]:
    """Lets everything that reads one of the variables through Keras see a tensor instead.

    Args:
        slices: Variables, each with the tensor that it shows, of its shape and dtype.
    """
    held = [(variable, stored_value(variable)) for variable, _ in slices]
    try:
        for variable, part in slices:
            set_stored_value(variable, part)
        yield
    finally:
        for variable, value in held:
            set_stored_value(variable, value)


def without_dense_gradient(variables: Iterable[keras.Variable], gradients: Iterable[Any]) -> list[keras.Variable]:
    """Returns the variables whose gradient is `None` or sparse."""
    pairs = zip(variables, gradients, strict=True)
    return [variable for variable, gradient in pairs if not isinstance(gradient, tf.Tensor)]


def in_custom_gradients(slices: Slices) -> list[keras.Variable]:
    """Returns the variables whose slice a `tf.custom_gradient` of the graph that is being traced uses by itself."""
    reached: set[int] = set()
    for results, arguments in custom_gradients(tf.compat.v1.get_default_graph()):
        # From the results back, on every way that does not lead through an argument.
        seen, pending = {id(argument) for argument in arguments}, list(results)
        while pending:
            tensor = pending.pop()
            if id(tensor) not in seen:
                seen.add(id(tensor))
                reached.add(id(tensor))
                pending += tensor.op.inputs
    return [variable for variable, part in slices if id(part) in reached]


def captured(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Returns the variables whose `tf.Variable` the graph that is being traced uses."""
    graph = tf.compat.v1.get_default_graph()
    return [variable for variable in variables if captures(graph, stored_value(variable))]
