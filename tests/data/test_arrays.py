"""Whatever holds numbers or text becomes an array, or is refused with what to do."""

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.arrays import as_array, as_arrays
from finetune.data.rows import tensor_rows
from finetune.errors import DataError


class OfTorch:
    """What a tensor of PyTorch that has a gradient does: it becomes an array after `detach` alone."""

    requires_grad = True

    def detach(self):
        self.requires_grad = False
        return self

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return np.arange(2.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        (tf.constant([1.5, 2.0]), np.array([1.5, 2.0], np.float32)),
        (OfTorch(), np.arange(2.0)),
        (np.array(["a", b"b"], object), np.array(["a", "b"])),
        (np.array([True, 2, 2.5], object), np.array([1.0, 2.0, 2.5])),
    ],
)
def test_lists_tensors_and_columns_become_arrays(value, expected):
    array = as_array(value)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_what_lies_in_a_file_or_is_rows_already_stays_so(tmp_path):
    mapped = np.memmap(tmp_path / "a", np.float32, "w+", shape=(3, 2))
    rows = tensor_rows(tf.range(3))
    assert as_array(mapped) is mapped
    assert as_array(rows) is rows


def test_dicts_tuples_and_lists_of_arrays_are_structures_and_other_lists_are_numbers():
    made = as_arrays({"a": [1, 2], "b": (tf.range(2), [np.zeros(2), np.ones(2)])})
    assert made["a"].tolist() == [1, 2]
    assert [type(each) for each in made["b"]] == [np.ndarray, tuple]
    assert as_arrays([np.float64(1), np.float64(2)]).tolist() == [1, 2]
    assert as_arrays(None) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 2], [3]], "Rows must all have the same shape. `x` cannot become an array: setting an array element"),
        (
            np.array([[1, 2], [3]], object),
            "Those of `x` differ in length. Pad, cut or resize the rows, as `keras.utils",
        ),
        (np.array(["a", 1], object), "Arrays hold numbers or text. `x` holds `int`, `str`. Convert its values"),
        (np.array([None, 1], object), "`x` holds `NoneType`, `int`."),
    ],
)
def test_what_has_no_shape_or_no_type_is_refused(value, said):
    with pytest.raises(DataError) as caught:
        as_array(value, "x")
    assert said in str(caught.value)
