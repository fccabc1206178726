"""The arrays of a data set in figures."""

import numpy as np

from finetune.data import input_facts
from finetune.data.examples import Examples
from finetune.data.input_facts import describe_arrays
from finetune.data.rows import as_rows


def test_each_array_has_its_name_type_shape_and_range():
    x = {"ids": np.arange(12, dtype=np.int32).reshape(6, 2), "size": np.linspace(-1, 1, 6, dtype=np.float32)}
    y, weights = np.array(["cat", "dog"] * 3), np.full(6, 0.5)
    assert describe_arrays(Examples(x, y, x, y, weights_train=weights)) == [
        {"name": "x/ids", "type": "int32", "shape": [2], "least": 0, "greatest": 11},
        {"name": "x/size", "type": "float32", "shape": [], "least": -1.0, "greatest": 1.0},
        {"name": "y", "type": "text", "shape": []},
        {"name": "weights", "type": "float64", "shape": [], "least": 0.5, "greatest": 0.5},
    ]


def test_rows_that_are_decoded_have_no_range_and_of_many_values_the_first_count(monkeypatch):
    monkeypatch.setattr(input_facts, "_MOST_READ", 8)
    x = np.arange(12, dtype=np.uint8).reshape(6, 2)
    (of_x, of_y) = describe_arrays(Examples(x, as_rows(x), x, x))
    assert of_x == {"name": "x", "type": "uint8", "shape": [2], "least": 0, "greatest": 7, "rows": 4}
    assert of_y == {"name": "y", "type": "uint8", "shape": [2]}
