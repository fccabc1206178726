"""What the arrays of a data set are: type, shape of a row and range of the inputs, the targets and the weights."""

from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import Examples, leaves
from finetune.data.rows import Rows

_MOST_READ = 2**26  # values of an array; of more, those of the first rows


def describe_arrays(examples: Examples) -> list[dict[str, Any]]:
    """Returns what each array of the training rows is, as plain data.

    Of rows that are decoded when they are needed the first is read, and nothing is said of their range.

    Args:
        examples: The examples.

    Returns:
        For each `name`, `type` and `shape` of a row; `least` and `greatest` value of numbers in memory, and in how many
        `rows` these were looked for, where not in all.
    """
    parts = {"x": examples.x_train, "y": examples.y_train, "weights": examples.weights_train}
    arrays = [pair for part, of in parts.items() if of is not None for pair in leaves(part, of)]
    return [{"name": name, **_facts(array)} for name, array in arrays]


def _facts(array: Any) -> dict[str, Any]:
    if isinstance(array, Rows):
        first = tf.convert_to_tensor(array.take(tf.zeros(1, tf.int64)))
        return {"type": first.dtype.name, "shape": list(first.shape[1:])}
    array = np.asarray(array)
    kind = "text" if array.dtype.kind in "US" else array.dtype.name
    facts = {"type": kind, "shape": list(array.shape[1:])}
    rows = min(len(array), _MOST_READ // max(array[:1].size, 1))
    if array.dtype.kind not in "biuf" or not rows:
        return facts
    read = array[:rows]
    facts |= {"least": read.min().item(), "greatest": read.max().item()}
    return facts | ({"rows": rows} if rows < len(array) else {})
