"""Arrays that TensorFlow uses without a copy."""

import numpy as np
import pytest

from finetune.data.aligned_arrays import ALIGNMENT, aligned_array, finished_bytes
from finetune.data.rows import as_rows


def finished(shape, dtype=np.float32):
    array = aligned_array(shape, dtype)
    array[...] = np.arange(array.size).reshape(shape)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1000, 5)])
def test_an_array_begins_where_tensorflow_needs_it_and_is_zero(shape):
    array = aligned_array(shape, np.float32)
    assert array.shape == shape
    assert array.dtype == np.float32
    assert array.ctypes.data % ALIGNMENT == 0
    assert not array.any()


def test_bytes_are_shared_only_of_an_array_that_nobody_writes_and_tensorflow_takes_as_it_is():
    array = finished((64, 4))
    np.testing.assert_array_equal(finished_bytes(array).view(np.float32).reshape(64, 4), array)
    np.testing.assert_array_equal(finished_bytes(array[16:20]).view(np.float32).reshape(4, 4), array[16:20])
    plain = np.ones((64, 4), np.float32)
    plain.flags.writeable = False
    for other in (array[1:], array[:, :2], aligned_array((4, 4), np.float32), plain, plain[16:]):
        assert finished_bytes(other) is None


def test_rows_of_a_finished_array_use_its_memory_and_those_of_another_are_a_copy():
    array = finished((32, 4))
    rows, written = as_rows(array), array.base
    np.testing.assert_array_equal(rows.take([3, 0]), array[[3, 0]])
    written[...] = 0  # which nobody does: only so can the test see whose memory it is
    assert not np.asarray(rows.take([3])).any()
    other = np.ones((32, 4), np.float32)
    copied = as_rows(other)
    other[...] = 0
    assert np.asarray(copied.take([3])).all()
