import csv
import io
import json

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.commands.predict import predict
from finetune.errors import DataError, FinetuneError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on arrays of two values."""
    folder = tmp_path_factory.mktemp("run")
    x = np.array([[0, 1], [1, 0]] * 6, "float32")
    np.savez(folder / "rows.npz", x_train=x, y_train=x[:, 0].astype(int), x_test=x, y_test=x[:, 0].astype(int))
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(folder / "net.keras")
    (folder / "recipe.yaml").write_text(
        "model: {keras_file: net.keras}\ndata: {npz: rows.npz}\n"
        "groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.3}]\ntrain: {epochs: 8, batch_size: 4}\n"
    )
    return finetune.run(folder / "recipe.yaml", folder / "run").folder


def test_each_row_is_a_line_of_json_on_standard_output(run):
    out = io.StringIO()
    assert predict(run, [run.parent / "rows.npz"], streams=(io.StringIO(), out), batch_size=5) == 0
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["input"] for line in lines] == [f"rows.npz:{row}" for row in range(12)]
    assert [line["label"] for line in lines] == ["0", "1"] * 6
    assert set(lines[0]) == {"input", "label", "probability", "top"}


def test_a_file_is_written_whole_as_csv_by_its_ending_or_not_at_all(run, tmp_path):
    predict(run, [run.parent / "rows.npz"], out=tmp_path / "a.csv", top=1)
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["0", "1"] * 6
    assert list(rows[0]) == ["input", "label", "probability", "error"]
    np.save(tmp_path / "bad.npy", np.zeros((3, 5)))
    with pytest.raises(DataError, match="takes rows of shape"):
        predict(run, [run.parent / "rows.npz", tmp_path / "bad.npy"], out=tmp_path / "b.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "bad.npy"]


def test_rows_that_are_skipped_say_why_in_their_line(run, tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros((1, 5)))
    out = tmp_path / "a.csv"
    inputs = [tmp_path / "bad.npy", run.parent / "rows.npz"]
    assert predict(run, inputs, out=out, on_error="skip", top=1) == 1
    rows = list(csv.reader(out.read_text().splitlines()))
    assert rows[0] == ["input", "label", "probability", "error"]
    assert rows[1][:3] == ["bad.npy:0", "", ""]
    assert "takes rows of shape" in rows[1][3]
    assert len(rows) == 14


def test_inputs_of_which_no_row_can_be_read_leave_no_file(run, tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros((2, 5)))
    with pytest.raises(DataError, match=r"None of the 2 rows can be read. The first: The network takes"):
        predict(run, [tmp_path / "bad.npy"], out=tmp_path / "a.csv", on_error="skip")
    assert not (tmp_path / "a.csv").exists()


def test_inputs_without_rows_beside_others_are_named(run, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 2)))
    (tmp_path / "photos").mkdir()
    told, inputs = io.StringIO(), [tmp_path / "none.npy", run.parent / "rows.npz", tmp_path / "photos"]
    predict(run, inputs, console=Console(file=told, width=1000), streams=(io.StringIO(), io.StringIO()))
    assert told.getvalue() == f"warning: no rows in `{tmp_path / 'none.npy'}`, `{tmp_path / 'photos'}`\n"


def test_inputs_without_a_row_and_other_formats_are_refused(run, tmp_path):
    with pytest.raises(FinetuneError, match=f"Received none, from `{tmp_path}`"):
        predict(run, [tmp_path], streams=(io.StringIO(), io.StringIO()))
    with pytest.raises(FinetuneError, match=r"written as `jsonl`, `csv`. Received: `xml`"):
        predict(run, ["-"], format="xml")
