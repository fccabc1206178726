"""What TensorFlow's graph optimizer makes of an update, so that a stack is rewritten as single variables are.

A step that `fit` compiles is not computed as Keras writes it. TensorFlow reorders some of its operations, for each
variable by itself, and cannot look through the operation that stacks several. A stack has the bits of Keras' compiled
step only if what is rewritten there is rewritten here as well. These are the places that concern an update:

- A product of a small and a large tensor: where the gradient is itself a product, as that of the scale of a batch
  normalization or one that was clipped, `(a * b) * rate` becomes `(a * rate) * b`. So a rule that multiplies the
  gradient by the rate gets the products of single variables (`may_be_products`).
- `x / sqrt(y)` becomes `x * rsqrt(y)`. Processors compute rsqrt in vectors, and what remains at the end of an array one
  by one, with other last bits. So an element has to keep its place within a vector (`keeps_vectors`).
- A power is not rewritten, but depends on the place as well: the bias corrections of a stack are powers of one number,
  not of a column (`is_power_of_steps`).
- Kernels of TF1 are not rewritten. Where their operations are written out, `as_written` keeps them.

See `tests/optimizers/fused/test_rewrites.py`, which holds every rule to the bits of Keras at random rates.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

VECTOR_BYTES = 64  # of the widest vector of a CPU, AVX-512; narrower ones are a part of it
# Operations whose result is a sum of many products, and so no factor of another product.
_SUMS = frozenset({"MatMul", "BatchMatMulV2", "Conv2DBackpropFilter", "BiasAddGrad"})


def may_be_products(gradients: Sequence[tf.Tensor]) -> bool:
    """Returns whether TensorFlow may multiply a factor of one of the gradients by the rate, instead of the gradient."""
    return not tf.executing_eagerly() and any(gradient.op.type not in _SUMS for gradient in gradients)


def keeps_vectors(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Returns whether the optimizer's rule gives an element of the variable the same bits at its place in a stack.

    Args:
        optimizer: Of a kind that may be stacked.
        variable: A `tf.Variable`.
    """
    divides_by_root = isinstance(optimizer, keras.optimizers.RMSprop | keras.optimizers.Adagrad) or (
        isinstance(optimizer, keras.optimizers.Adam) and not optimizer.epsilon  # `sqrt(v) + 0` is `sqrt(v)`
    )
    in_whole_vectors = variable.shape.num_elements() * variable.dtype.size % VECTOR_BYTES == 0
    return in_whole_vectors or not divides_by_root or _on_gpu(variable)


def is_power_of_steps(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Returns whether the rule computes powers whose bits depend on the place of a variable in a column of steps."""
    return isinstance(optimizer, keras.optimizers.Adam | keras.optimizers.Adamax) and not _on_gpu(variable)


def as_written(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor by an operation that TensorFlow does not look through when it rewrites products and roots."""
    # It removes an identity, `stop_gradient` and the like. This one costs no copy.
    return tf.ensure_shape(tensor, tensor.shape)


def _on_gpu(variable: Any) -> bool:
    return "GPU" in (variable.device or "")  # every element is computed by itself there
