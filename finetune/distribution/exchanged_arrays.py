"""Arrays of which each worker has computed its own, given to all of them, bit for bit."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import tensorflow as tf

from finetune.distribution.workers import Workers


def exchange_of(workers: Workers) -> Callable[[Sequence[np.ndarray]], list[list[np.ndarray]]]:
    """Returns a function of arrays that returns those of each worker, in the order of the workers.

    All workers must call it as often, with arrays of the same types and shapes.

    Args:
        workers: All workers.
    """
    # Bytes as whole numbers: what gathers them knows few types, and no number is computed with.
    signature = [tf.TensorSpec((1, None), tf.int64)]
    gathered = tf.function(workers.gathered, autograph=False, input_signature=signature)

    def given_to_all(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        ends = list(accumulate(array.nbytes for array in arrays))
        content = b"".join(array.tobytes() for array in arrays)
        words = np.frombuffer(content + bytes(-len(content) % 8), np.int64)
        return [
            [
                np.frombuffer(of_one[end - array.nbytes : end], array.dtype).reshape(array.shape)
                for array, end in zip(arrays, ends, strict=True)
            ]
            for of_one in (row.tobytes() for row in gathered(words[np.newaxis]).numpy())
        ]

    return given_to_all
