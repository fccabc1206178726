import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.sparse import densify, merge_rows, merge_to_clip


def sparse():
    values = tf.constant([[3.0, 4.0], [1.0, 1.0], [3.0, 4.0]])
    return tf.IndexedSlices(values, tf.constant([2, 0, 2]), dense_shape=tf.constant([4, 2]))


def test_the_pieces_of_a_row_are_added_up_so_that_the_norm_is_that_of_the_gradient():
    (merged,) = merge_rows([sparse()])
    assert isinstance(merged, tf.IndexedSlices)
    assert merged.indices.numpy().tolist() == [2, 0]
    np.testing.assert_array_equal(merged.values, [[6, 8], [1, 1]])
    np.testing.assert_array_equal(merged.dense_shape, [4, 2])
    assert float(tf.norm(merged.values)) == float(tf.norm(tf.convert_to_tensor(sparse())))


def test_dense_gradients_and_missing_ones_stay_as_they_are():
    dense = tf.ones((2, 2))
    assert merge_rows([dense, None])[0] is dense
    assert merge_rows([dense, None])[1] is None
    assert densify([dense, None])[0] is dense
    assert densify([dense, None])[1] is None


def test_a_sparse_gradient_becomes_a_tensor_of_the_variables_shape():
    (dense,) = densify([sparse()])
    np.testing.assert_array_equal(dense, [[1, 1], [0, 0], [6, 8], [0, 0]])


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_rows_are_merged_for_an_optimizer_that_clips_and_for_no_other(clip):
    assert merge_to_clip([sparse()], keras.optimizers.SGD(0.1, **{clip: 1.0}))[0].values.shape == (2, 2)
    assert merge_to_clip([sparse()], keras.optimizers.SGD(0.1))[0].values.shape == (3, 2)
