import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.inference.prepared_inputs import encoder_of
from finetune.inference.raw_rows import raw_rows_of, read_raw_rows


def prepare(fine_tuned, values):
    [chunk] = raw_rows_of(values, read=read_raw_rows)
    return fine_tuned.prepare(chunk)


def test_numbers_and_categories_are_encoded_as_they_were_fitted(loaded):
    fine_tuned = loaded("table")
    fitted = fine_tuned.record.inputs[0].fitted["age"]
    made = prepare(
        fine_tuned,
        [
            {"age": fitted["mean"] + fitted["variance"] ** 0.5, "town": "Ulm"},
            {"age": "NA", "town": None},
            {"age": None, "town": "Rome"},
            {"age": float("nan"), "town": 7.0},
        ],
    )
    np.testing.assert_allclose(made[:, 0], [1, 0, 0, 0], atol=1e-6)
    # The first place is that of a town that no training row has; the second of a missing one.
    np.testing.assert_array_equal(made[:, 1:].argmax(axis=1), [4, 1, 0, 2])
    with pytest.raises(DataError, match=r"`age` holds numbers. `row 1` has `old`"):
        prepare(fine_tuned, {"age": [1, "old"], "town": ["Ulm", "Ulm"]})
    with pytest.raises(DataError, match=r"`row 0` has columns `age`, `towm`; `town` is missing. Did you mean `towm`"):
        prepare(fine_tuned, {"age": [1], "towm": ["Ulm"]})
    with pytest.raises(DataError, match="rows of a single value without a name"):
        prepare(fine_tuned, ["Ulm"])


def test_texts_are_cut_filled_up_and_taken_by_name(loaded):
    made = prepare(loaded("labels"), [{"text": "red box", "size": 1}, {"text": "green " * 9, "size": None}])
    assert list(made) == ["ids", "size"]
    np.testing.assert_array_equal(made["ids"][1][:6], [3] * 6)
    assert made["ids"][0].tolist()[:3] == [2, 5, 0]
    assert made["size"][1] == 0  # the mean
    with pytest.raises(DataError, match=r"Rows need a value for `text`\. `row 1` has none"):
        prepare(loaded("labels"), [{"text": "red", "size": 1}, {"size": 2}])
    encode, length, pad = encoder_of(loaded("labels").record, loaded("labels").record.inputs[0])
    assert (encode([("red",)])[0].tolist(), length, pad) == ([2], 6, 0)


def test_pictures_are_files_their_bytes_or_arrays_and_give_the_same_values(loaded, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    made = prepare(loaded("images"), [tmp_path / "a.png"])
    for values in (
        [data],
        [pixels],
        [Image.fromarray(pixels)],
        [pixels.astype("float32")],
        {"": [str(tmp_path / "a.png")]},
    ):
        np.testing.assert_array_equal(prepare(loaded("images"), values), made)
    with pytest.raises(DataError, match="Multiply values from 0 to 1 by 255"):
        prepare(loaded("images"), [pixels / 255])
    with pytest.raises(
        DataError, match=r"`row 0` names the file `.*b\.png`, which does not exist. Did you mean `a\.png`"
    ):
        prepare(loaded("images"), {"": [str(tmp_path / "b.png")]})
    with pytest.raises(DataError, match="rows of this run are files of kind `image`"):
        prepare(loaded("images"), {"age": [1], "town": [2]})


def test_sounds_may_be_samples(loaded):
    made = prepare(loaded("audio"), [np.ones(50), np.ones(200)])
    np.testing.assert_array_equal(made.sum(axis=1), [50, 100])
    with pytest.raises(DataError, match="Samples have shape"):
        prepare(loaded("audio"), [np.ones((50, 2))])


def test_arrays_must_have_the_shape_that_the_network_takes(loaded):
    assert prepare(loaded("arrays"), np.zeros((3, 4))).dtype == np.float32
    with pytest.raises(DataError, match=r"takes rows of shape \(4,\). `row 0` has \(5,\)"):
        prepare(loaded("arrays"), np.zeros((3, 5)))
    with pytest.raises(DataError, match="This run was trained on arrays"):
        prepare(loaded("arrays"), ["text"])
    with pytest.raises(DataError, match=r"This run was trained on arrays: `its only input`. `row 0` has `a`, `b`"):
        prepare(loaded("arrays"), {"a": [1], "b": [2]})
