"""The listing of a file of weights lines up, and ends with the totals."""

from finetune.results.file_listing import listing_text

LISTING = {
    "path": "m.npz",
    "kind": "npz",
    "weights": [
        {"name": "body/kernel", "shape": [30, 40], "dtype": "float64", "parameters": 1200, "bytes": 9600},
        {"name": "scale", "shape": [], "dtype": "bfloat16", "parameters": 1, "bytes": 2},
    ],
    "parameters": 1201,
    "bytes": 9602,
    "dtypes": {"float64": 1, "bfloat16": 1},
}


def test_a_listing_has_a_line_for_each_weight_with_numbers_aligned_to_the_right():
    assert listing_text(LISTING).splitlines() == [
        "m.npz: npz",
        "weight       shape   dtype     parameters     size",
        "-----------  ------  --------  ----------  -------",
        "body/kernel  30x40   float64        1,200   9.6 kB",
        "scale        scalar  bfloat16           1  2 bytes",
        "2 weights, 1,201 parameters, 9.6 kB (1 float64, 1 bfloat16)",
    ]


def test_a_file_without_weights_has_a_header_and_totals_of_zero():
    empty = {**LISTING, "weights": [], "parameters": 0, "bytes": 0, "dtypes": {}}
    lines = listing_text(empty).splitlines()
    assert lines[1] == "weight  shape  dtype  parameters  size"
    assert lines[-1] == "0 weights, 0 parameters, 0 bytes ()"
