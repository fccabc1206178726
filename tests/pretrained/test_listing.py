import ml_dtypes
import numpy as np

from finetune.pretrained.listing import list_weights


def listing(tmp_path):
    arrays = {"body/kernel": np.zeros((30, 40)), "scale": np.zeros((), ml_dtypes.bfloat16)}
    np.savez(tmp_path / "m.npz", **arrays)
    return list_weights(tmp_path / "m.npz")


def test_a_listing_tells_name_shape_type_and_size_of_each_weight_and_the_totals(tmp_path):
    assert listing(tmp_path) == {
        "path": str(tmp_path / "m.npz"),
        "kind": "npz",
        "weights": [
            {"name": "body/kernel", "shape": [30, 40], "dtype": "float64", "parameters": 1200, "bytes": 9600},
            {"name": "scale", "shape": [], "dtype": "bfloat16", "parameters": 1, "bytes": 2},
        ],
        "parameters": 1201,
        "bytes": 9602,
        "dtypes": {"float64": 1, "bfloat16": 1},
    }
