"""Shapes of which a part is known."""

import pytest
import tensorflow as tf

from finetune.kernels.shapes import lengths_of, reshape


@pytest.mark.parametrize(
    ("shape", "static"),
    [((2, 3, 4), [6, 4]), ((None, 3, 4), [None, 4]), ((None, None, 4), [None, 4]), ((2, None, 4), [None, 4])],
)
def test_a_shape_is_kept_as_far_as_it_is_known_there_and_back(shape, static):
    known = []

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape)])
    def run(x):
        rows = reshape(x, [None if None in shape else 6, 4])
        back = reshape(rows, lengths_of(x))
        known.extend([rows.shape.as_list(), back.shape.as_list()])
        return back

    x = tf.reshape(tf.range(24.0), (2, 3, 4))
    assert bool(tf.reduce_all(run(x) == x))
    assert known == [static, list(shape)]


def test_a_tensor_that_has_the_shape_stays_itself():
    x = tf.ones((2, 3))
    assert reshape(x, [2, 3]) is x
    assert reshape(x, [3, 2]) is not x
