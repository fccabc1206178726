"""LSTM and GRU without a gradient: several steps in each turn of the loop, and one product for their inputs.

For inputs `x`, states `h` and `c`, and the functions `s` and `a` of the layer:

    LSTM:  i, f, g, o = x W + b + h U;   c <- s(f) c + s(i) a(g);   h <- s(o) a(c)
    GRU:   z, r, n = x W + b,  u, v, m = h U + d
           h <- s(z + u) h + (1 - s(z + u)) a(n + s(r + v) m)

Keras multiplies the inputs of each step by themselves, and each step is a turn of TensorFlow's loop, which costs as
much as several operations on so small a batch. Here a turn computes eight steps, whose `x W + b` are one product. Where
a gradient is taken Keras' loop stays: written gradients, with or without this, take a tenth to a fifth longer.

References:
    Hochreiter & Schmidhuber (1997); Cho et al. (2014), https://arxiv.org/abs/1406.1078
    `keras.layers.LSTM.call` and `keras.layers.GRU.call`, which it stands for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.kernels.shapes import lengths_of, reshape

_STEPS = 8  # in a turn of the loop

States = tuple[tf.Tensor, ...]
Step = Callable[[tf.Tensor, States], States]


def lstm(layer: Any, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Computes a `keras.layers.LSTM`; a kernel of `finetune.kernels.native_kernels`.

    Args:
        layer: The layer.
        sequences: Shape `(batch, steps, features)`.
        initial_state: States before the first step, each of shape `(batch, units)`; `None` for zeros.
        mask: Which steps count, shape `(batch, steps)`; the others leave the states as they are.
        training: Not used: a layer with dropout is left to Keras.

    Returns:
        What Keras returns; `None` where the kernel does not apply.
    """
    if not _applies(layer, keras.layers.LSTMCell, sequences, initial_state, mask):
        return None
    recurrent = tf.convert_to_tensor(layer.cell.recurrent_kernel)

    def step(inputs: tf.Tensor, states: States) -> States:
        h, c = states
        i, f, g, o = tf.split(tf.matmul(h, recurrent) + inputs, 4, axis=1)
        gate = layer.recurrent_activation
        c = gate(f) * c + gate(i) * layer.activation(g)
        return gate(o) * layer.activation(c), c

    return _outputs(layer, sequences, initial_state, mask, layer.cell.bias, step)


def gru(layer: Any, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Computes a `keras.layers.GRU` that resets after the product; a kernel of `finetune.kernels.native_kernels`.

    Args:
        layer: The layer.
        sequences: Shape `(batch, steps, features)`.
        initial_state: The state before the first step, shape `(batch, units)`; `None` for zeros.
        mask: Which steps count, shape `(batch, steps)`; the others leave the state as it is.
        training: Not used: a layer with dropout is left to Keras.

    Returns:
        What Keras returns; `None` where the kernel does not apply.
    """
    if not _applies(layer, keras.layers.GRUCell, sequences, initial_state, mask) or not layer.cell.reset_after:
        return None
    recurrent = tf.convert_to_tensor(layer.cell.recurrent_kernel)
    bias, of_state = (None, None) if layer.cell.bias is None else tf.unstack(tf.convert_to_tensor(layer.cell.bias))

    def step(inputs: tf.Tensor, states: States) -> States:
        (h,) = states
        inner = tf.matmul(h, recurrent)
        inner = inner if of_state is None else tf.nn.bias_add(inner, of_state)
        (z, r, n), (u, v, m) = (tf.split(each, 3, axis=1) for each in (inputs, inner))
        kept = layer.recurrent_activation(z + u)
        return (kept * h + (1.0 - kept) * layer.activation(n + layer.recurrent_activation(r + v) * m),)

    return _outputs(layer, sequences, initial_state, mask, bias, step)


def _applies(layer: Any, cell: Any, sequences: Any, initial_state: Any, mask: Any) -> bool:
    states = (
        [] if initial_state is None else initial_state if isinstance(initial_state, list | tuple) else [initial_state]
    )
    tensors = [sequences, *states]
    return (
        type(layer.cell) is cell
        and all(isinstance(x, tf.Tensor) and x.dtype == tf.float32 == layer.compute_dtype for x in tensors)
        and layer.cell.compute_dtype == "float32"
        and sequences.shape.rank == 3
        and sequences.shape[-1] == layer.cell.kernel.shape[0]
        and sequences.shape[1] != 0
        and not (layer.stateful or layer.unroll or layer.use_cudnn is True)
        # Keras draws the numbers of dropout even where it drops nothing.
        and not (layer.cell.dropout or layer.cell.recurrent_dropout)
        # The output of a step that does not count is zero before the first one that does, whatever the state is.
        and (mask is None or (isinstance(mask, tf.Tensor) and mask.dtype == tf.bool and mask.shape.rank == 2))
        and (mask is None or not (states or layer.zero_output_for_mask))
        and not tf.config.list_logical_devices("GPU")  # cuDNN has kernels of its own
        and not keras_private.is_recorded([*tensors, *map(tf.convert_to_tensor, layer.cell.weights)])
    )


def _outputs(layer: Any, sequences: tf.Tensor, initial_state: Any, mask: Any, bias: Any, step: Step) -> Any:
    """Runs over all steps, and returns what the layer is to return."""
    if initial_state is None:
        initial_state = layer.get_initial_state(batch_size=tf.shape(sequences)[0])
    states = tuple(initial_state) if isinstance(initial_state, list | tuple) else (initial_state,)
    if layer.go_backwards:
        sequences, mask = tf.reverse(sequences, [1]), None if mask is None else tf.reverse(mask, [1])
    by_step = tf.transpose(sequences, (1, 0, 2))
    counts = None if mask is None else tf.transpose(mask)[:, :, None]
    last, outputs = _run(
        by_step, counts, states, tf.convert_to_tensor(layer.cell.kernel), bias, step, layer.return_sequences
    )
    result = last[0] if outputs is None else tf.transpose(outputs, (1, 0, 2))
    return (result, *last) if layer.return_state else result


def _run(
    x: tf.Tensor, counts: Any, states: Sequence[Any], kernel: tf.Tensor, bias: Any, step: Step, collects: bool
) -> tuple[States, Any]:
    """Returns the states after the last step, and the first state after each step if they are collected.

    Args:
        x: Shape `(steps, batch, features)`.
        counts: Which steps count, shape `(steps, batch, 1)`, or `None` if all do.
        states: Those before the first step.
        kernel: Factor of the inputs.
        bias: What is added to the product, or `None`.
        step: Takes the product of a step's inputs and the states, and returns the next states.
        collects: Whether the first state is collected.
    """
    number, batch, features = lengths_of(x)
    # One more variable of the loop costs as much as an operation, so there is none where nothing is collected.
    collected = (tf.TensorArray(tf.float32, number, element_shape=states[0].shape),) if collects else ()

    def turn(steps: int) -> Callable[..., Any]:
        def run(time: Any, states: States, collected: Any) -> Any:
            rows = reshape(tf.slice(x, [time, 0, 0], [steps, -1, -1]), [None, features])
            products = tf.matmul(rows, kernel)
            products = products if bias is None else tf.nn.bias_add(products, tf.convert_to_tensor(bias))
            for ahead, inputs in enumerate(tf.unstack(reshape(products, [steps, batch, kernel.shape[1]]))):
                after = step(inputs, states)
                if counts is not None:
                    after = tuple(tf.where(counts[time + ahead], a, b) for a, b in zip(after, states, strict=True))
                states = after
                collected = tuple(array.write(time + ahead, states[0]) for array in collected)
            return time + steps, states, collected

        return run

    loop = (tf.constant(0), tuple(states), collected)
    loop = tf.while_loop(lambda time, *_: time + _STEPS <= number, turn(_STEPS), loop)
    if not isinstance(number, int) or number % _STEPS:
        loop = tf.while_loop(lambda time, *_: time < number, turn(1), loop)
    _, last, collected = loop
    return last, collected[0].stack() if collects else None
