"""The listing of a file of weights lines up, and ends with the totals."""

from finetune.results.file_listing import listing_text


def row(name, role, shape, dtype, parameters, size):
    keys = ("name", "role", "shape", "dtype", "parameters", "bytes")
    return dict(zip(keys, (name, role, shape, dtype, parameters, size), strict=True))


LISTING = {
    "path": "m.npz",
    "kind": "npz",
    "weights": [
        row("body/kernel", "weight", [30, 40], "float64", 1200, 9600),
        row("scale", "weight", [], "bfloat16", 1, 2),
    ],
    "others": [
        row("body/kernel/Adam", "slot", [30, 40], "float64", 1200, 9600),
        row("words", "text", [2], "string", 2, 0),
    ],
    "parameters": 1201,
    "bytes": 9602,
    "dtypes": {"float64": 1, "bfloat16": 1},
    "roles": {"weight": 2, "slot": 1, "text": 1},
}


def test_a_listing_has_a_line_for_each_tensor_with_numbers_aligned_to_the_right_and_the_weights_first():
    assert listing_text(LISTING).splitlines() == [
        "m.npz: npz",
        "tensor            role    shape   dtype     parameters     size",
        "----------------  ------  ------  --------  ----------  -------",
        "body/kernel       weight  30x40   float64        1,200   9.6 kB",
        "scale             weight  scalar  bfloat16           1  2 bytes",
        "body/kernel/Adam  slot    30x40   float64        1,200   9.6 kB",
        "words             text    2       string             2",
        "2 weights, 1,201 parameters, 9.6 kB (1 float64, 1 bfloat16)",
        "no weights: 1 slot, 1 text",
    ]


def test_a_file_without_weights_has_a_header_and_totals_of_zero():
    empty = {**LISTING, "weights": [], "others": [], "parameters": 0, "bytes": 0, "dtypes": {}, "roles": {}}
    lines = listing_text(empty).splitlines()
    assert lines[1] == "tensor  role  shape  dtype  parameters  size"
    assert lines[-1] == "0 weights, 0 parameters, 0 bytes ()"


def test_names_from_the_file_cannot_forge_a_line_or_move_the_cursor():
    forged = {
        **LISTING,
        "path": "a\x1b[2J.npz",
        "weights": [row("x\n99 weights, all fine\r", "weight", [1], "float32", 1, 4)],
    }
    lines = listing_text(forged).splitlines()
    assert lines[0] == "a\\x1b[2J.npz: npz"
    assert any(line.startswith("x\\n99 weights, all fine\\r  weight") for line in lines)
    assert len(lines) == len(listing_text(LISTING).splitlines()) - 1


def test_a_graph_is_listed_with_what_it_reaches():
    graph = {"operations": {"MatMul": 1200, "ReadFile": 1}, "outside": {"ReadFile": "files"}}
    assert listing_text(LISTING | graph).splitlines()[-2:] == [
        "graph: 1,201 operations: MatMul x1200, ReadFile",
        "reach outside of it: ReadFile (files)",
    ]
    assert listing_text(LISTING | graph | {"outside": {}}).endswith("reach outside of it: none")
