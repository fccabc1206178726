"""Whether what crosses a cut can be kept: a row of numbers for each example, which depends on that example alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


class OffError(Exception):
    """Why there are no features after all; `cached_features` returns it as a reason."""


def check_rows(values: dict[str, Any], rows: int) -> None:
    """Checks that each value has a row of numbers for every example.

    Args:
        values: What crosses the cut, by number.
        rows: How many examples were run.

    Raises:
        OffError: One has not.
    """
    for value in values.values():
        if not isinstance(value, tf.Tensor) or value.dtype == tf.string:
            raise OffError("what crosses the cut is not a dense tensor of numbers")
        if value.shape.rank < 1 or value.shape[0] != rows:
            raise OffError("what crosses the cut has no row for every example")


def check_same(run: Callable[[Any], Any], rows: Any, first: dict[str, tf.Tensor]) -> None:
    """Checks that an example's features depend on that example alone, and are the same in a second run.

    The rows are run in reverse order. Where that gives other bits, a second run in the first order tells random layers
    from kernels whose last bit depends on the order; beyond the last bits, examples depend on each other.

    Args:
        run: Returns values by number, and masks.
        rows: The rows.
        first: What `run` has returned for them, without masks.

    Raises:
        OffError: They depend on something else.
    """
    turned, _ = run(tf.nest.map_structure(lambda part: tf.reverse(part, [0]), rows))
    if all(_same(first[number], tf.reverse(turned[number], [0])) for number in first):
        return
    again, _ = run(rows)
    if any(not _same(first[number], again[number]) for number in first):
        raise OffError("the frozen part returns other outputs when it is run again on the same examples")
    if any(not _close(first[number], tf.reverse(turned[number], [0])) for number in first):
        raise OffError("the frozen part returns other outputs for an example when the other examples change")


def _same(a: tf.Tensor, b: tf.Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()


def _close(a: tf.Tensor, b: tf.Tensor) -> bool:
    first, second = (tf.cast(tensor, tf.float64).numpy() for tensor in (a, b))
    tolerance = 1e-2 * max(float(np.abs(first).max(initial=0)), 1e-6)
    return np.allclose(first, second, rtol=0, atol=tolerance, equal_nan=True)
