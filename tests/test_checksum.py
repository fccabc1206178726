import hashlib

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from finetune.checksum import checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_weight_has_the_same_checksum_wherever_it_is_held(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(tf.as_dtype(dtype).as_numpy_dtype)
    held = [array, tf.constant(array), tf.Variable(array), keras.Variable(tf.constant(array), dtype=dtype)]
    assert len({checksum(values) for values in held}) == 1


def test_the_checksum_is_the_beginning_of_the_sha256_of_the_bytes():
    array = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    assert checksum(array) == hashlib.sha256(array.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("other", [[0.0, 2.0], [-0.0, 1.0], [0.0, np.nextafter(np.float32(1), np.float32(2))]])
def test_one_bit_makes_another_checksum(other):
    assert checksum(np.array([0.0, 1.0], "float32")) != checksum(np.array(other, "float32"))


def test_a_nan_equals_itself_and_the_order_in_memory_does_not_count():
    array = np.array([[np.nan, 1], [2, 3]], "float32")
    assert checksum(array) == checksum(np.asfortranarray(array))
