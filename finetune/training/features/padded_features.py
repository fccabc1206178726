"""Features of texts without the padding that all rows of a batch have.

The frozen part is run on rows of the full length. Where the rows of a batch need less, so do their features, in the
axis that has the length of the rows. Which axis that is shows in the shapes of a graph whose inputs have an open
length.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tensorflow as tf

from finetune.data.rows import Rows
from finetune.training.features.cut import Cut, Front

Arrays = dict[str, Rows]


def without_padding(
    cut: Cut, inputs: Mapping[int, Rows], values: Arrays, masks: Arrays, passes: int
) -> tuple[Arrays, Arrays]:
    """Lets what crosses a cut be as short in a batch as the rows of the model's inputs are.

    Nothing changes where no input has padding, several have paddings of their own, or where the length of the rows is
    found anywhere but in the second axis of a value, such as in the scores of attention.

    Args:
        cut: The cut.
        inputs: The inputs of the model, by number.
        values: What crosses the cut, by number: features, and inputs.
        masks: The masks of features, by number.
        passes: How many versions of the features there are, one after another.
    """
    padded = {number: rows for number, rows in inputs.items() if rows.batch_width is not None}
    widths = {rows.batch_width for rows in padded.values()}
    if len(widths) != 1:
        return values, masks
    [width], rows = widths, next(iter(padded.values())).length
    lengths = {_shape(rows)[1] for rows in padded.values()}
    shapes = _open_shapes(cut, inputs, padded)
    is_padded: dict[str, bool] = {number: int(number) in padded for number in values if number not in shapes}
    for number, shape in shapes.items():
        is_padded[number] = len(shape) > 1 and shape[1] is None
        if None in shape[2:] or (is_padded[number] and {_shape(values[number])[1]} != lengths):
            return values, masks

    def in_batch(indices: Any) -> Any:
        assert width is not None
        return width(tf.math.floormod(indices, rows) if passes > 1 else indices)

    def shortened(arrays: Arrays) -> Arrays:
        return {
            number: replace(array, batch_width=in_batch) if is_padded[number] else array
            for number, array in arrays.items()
        }

    return shortened(values), shortened(masks)


def _shape(rows: Rows) -> tuple[int | None, ...]:
    return tuple(rows.take(tf.zeros((1,), tf.int64)).shape)


def _open_shapes(cut: Cut, inputs: Mapping[int, Rows], padded: Mapping[int, Rows]) -> dict[str, tuple[int | None, ...]]:
    """Returns the shapes of the features by number, where the length of padded inputs is open."""
    front = Front(cut, cut.computed)
    signature = []
    for number, rows in sorted(inputs.items()):
        sample = rows.take(tf.zeros((1,), tf.int64))
        shape = [None, None, *sample.shape[2:]] if number in padded else [None, *sample.shape[1:]]
        signature.append(tf.TensorSpec(shape, sample.dtype))

    run = tf.function(lambda x: front(x, training=True)[0], input_signature=[tuple(signature)], autograph=False)
    outputs: Any = run.get_concrete_function().structured_outputs
    # A shape of an unknown rank has open axes everywhere.
    return {
        number: tuple(value.shape) if value.shape.rank is not None else (None,) * 9 for number, value in outputs.items()
    }
