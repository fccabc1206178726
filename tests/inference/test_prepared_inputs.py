import wave
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.inference.prepared_inputs import encoder_of, prepares
from finetune.inference.raw_rows import raw_rows_of, read_raw_rows
from finetune.inference.record import InputRecord


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
    with pytest.raises(DataError, match=r"`age`, `town`\. `row 0` is a single value without a name\. Give a table"):
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
    with pytest.raises(DataError, match="or samples of shape"):
        prepare(loaded("audio"), [np.ones((50, 2))])


def test_arrays_must_have_the_shape_that_the_network_takes(loaded):
    assert prepare(loaded("arrays"), np.zeros((3, 4))).dtype == np.float32
    with pytest.raises(DataError, match=r"takes rows of shape \(4,\). `row 0` has \(5,\)"):
        prepare(loaded("arrays"), np.zeros((3, 5)))
    with pytest.raises(DataError, match="This run was trained on arrays"):
        prepare(loaded("arrays"), ["text"])
    with pytest.raises(DataError, match=r"This run was trained on arrays\. `row 0` has the columns `a`, `b`"):
        prepare(loaded("arrays"), {"a": [1], "b": [2]})


# -- Files of another kind --------------------------------------------------------------------------------------------

IMAGES = "The rows of this run are images"
SOUNDS = "The rows of this run are sounds: names of WAV files, or samples of shape (length,)."
TABLE = "Rows need the columns that the model was trained on: `age`, `town`."
LABELS = "Rows need the columns that the model was trained on: `text`, `size`."
ARRAYS = "This run was trained on arrays"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setparams((1, 2, 100, 0, "NONE", ""))
        file.writeframes(bytes(20))
    (folder / "a.csv").write_text("p,q\n1,x\n")
    (folder / "a.jsonl").write_text('{"p": 1}\n')
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    np.savez(folder / "a.npz", x=np.zeros((2, 3)))
    np.save(folder / "a.npy", np.zeros((2, 2, 5, 5)))
    (folder / "b.npz").write_bytes((folder / "a.png").read_bytes())
    (folder / "b.csv").write_bytes((folder / "a.wav").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("images", "a.wav", f"{IMAGES}: JPEG, PNG, GIF, BMP, WebP. `PLACE` is a WAV sound. Leave it out, or give the"),
        ("images", "text.png", "`PLACE` is none of these."),
        ("images", "empty.png", "`PLACE` is empty."),
        ("images", "a.csv", "files of kind `image`. Received a table with the columns `p`, `q`."),
        (
            "images",
            "a.jsonl",
            f"{IMAGES}: names of files, or arrays of shape (height, width) or (height, width, 3). `a.j",
        ),
        ("images", "a.npz", "`a.npz:0` has type `float64` and shape (3,)."),
        ("audio", "a.png", "`PLACE` cannot be read as a WAV file: it is a PNG image."),
        ("audio", "text.png", "`PLACE` cannot be read as a WAV file: it does not begin as one."),
        ("audio", "empty.png", "`PLACE` cannot be read as a WAV file: it is empty."),
        ("audio", "a.jsonl", f"{SOUNDS} `a.jsonl:1` has shape ()."),
        ("audio", "a.npy", f"{SOUNDS} `a.npy:0` has shape (2, 5, 5)."),
        ("table", "a.png", f"{TABLE} `PLACE` is a file. Give a table, or JSON objects, with these columns."),
        ("table", "a.wav", f"{TABLE} `PLACE` is a file."),
        ("table", "a.csv", f"{TABLE} `a.csv:2` has columns `p`, `q`; `age`, `town` are missing."),
        ("table", "a.npz", f"{TABLE} `a.npz:0` is an array of shape (3,)."),
        ("table", "b.npz", "`PLACE` must be a readable `.npz` file; it is a PNG image."),
        ("table", "b.csv", "Tables are text in UTF-8. `b.csv` is a WAV sound."),
        ("labels", "a.png", f"{LABELS} `PLACE` is a file. Give a table, or JSON objects, with these columns."),
        ("labels", "a.jsonl", f"{LABELS} `a.jsonl:1` has columns `p`; `text` is missing."),
        ("labels", "a.npy", f"{LABELS} `a.npy:0` is an array of shape (2, 5, 5)."),
        ("arrays", "a.png", f"{ARRAYS}, rows of shape (4,). `PLACE` is a file of another kind. Give an `.npz`"),
        ("arrays", "a.csv", f"{ARRAYS}. `a.csv:2` has the columns `p`, `q`."),
        ("arrays", "a.npz", "The network takes rows of shape (4,). `a.npz:0` has (3,)."),
    ],
)
def test_a_file_of_another_kind_is_told_what_the_run_takes(loaded, files, kind, file, said):
    fine_tuned = loaded(kind)
    with pytest.raises(DataError) as error:
        list(fine_tuned.predictions(fine_tuned.read([files / file])))
    assert said.replace("PLACE", str(files / file)) in str(error.value)


def test_files_and_arrays_are_not_taken_for_the_texts_of_an_only_column(files):
    record = SimpleNamespace(inputs=(InputRecord("", "string", ("review",), {}),), missing=None)
    prepared = prepares(record, keras.Sequential([keras.Input((), dtype="string")]))
    assert prepared(next(raw_rows_of(["good"], read=read_raw_rows))).tolist() == ["good"]
    for file, received in (("a.png", "a file"), ("a.npy", r"an array of shape \(2, 5, 5\)")):
        with pytest.raises(DataError, match=rf"`review`\. `.*` is {received}\. .* this column, or texts on standard"):
            prepared(next(read_raw_rows([files / file])))
