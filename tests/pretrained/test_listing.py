import ml_dtypes
import numpy as np

from finetune.pretrained.listing import list_weights
from finetune.results.file_listing import listing_text, size_text


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


def test_a_listing_as_text_has_a_line_for_each_weight(tmp_path):
    assert listing_text(listing(tmp_path)).splitlines() == [
        f"{tmp_path}/m.npz: npz",
        "weight       shape   dtype     parameters     size",
        "-----------  ------  --------  ----------  -------",
        "body/kernel  30x40   float64        1,200   9.6 kB",
        "scale        scalar  bfloat16           1  2 bytes",
        "2 weights, 1,201 parameters, 9.6 kB (1 float64, 1 bfloat16)",
    ]


def test_sizes_have_three_digits_and_the_unit_that_fits():
    assert [size_text(n) for n in (0, 999, 1000, 999_999, 1e9, 5e15)] == [
        *("0 bytes", "999 bytes", "1 kB", "1 MB", "1 GB", "5e+03 TB"),
    ]
