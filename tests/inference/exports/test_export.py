"""The whole way of an export: written, opened in a new process, compared, put in place."""

import json

import pytest

from finetune.errors import FinetuneError
from finetune.inference.exports import export as story

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_raw_rows_of_the_test_split_have_the_same_answers_in_a_new_process(loaded, tmp_path):
    done = loaded("images").export("savedmodel", tmp_path / "deep" / "pets")
    assert (done.rows, done.compared_on, done.file) == (6, "rows of the test split", tmp_path / "deep" / "pets")
    assert done.difference <= 1e-6
    about = json.loads((done.folder / "export.json").read_text())
    assert about["classes"] == {"output": ["blue", "green", "red"]}
    [taken] = about["inputs"]
    assert (taken["name"], taken["dtype"], taken["shape"]) == ("image", "string", [None])
    assert about["preparation"][0]["fitted"]["size"] == [8, 8]
    assert str(tmp_path.parent.parent) not in json.dumps(about)
    assert [path.name for path in tmp_path.glob("**/.exporting*")] == []


def test_a_keras_file_has_the_same_answers_and_what_it_does_not_do_lies_beside_it(loaded, tmp_path):
    done = loaded("labels").export("keras", tmp_path / "out")
    assert done.difference <= 1e-5
    names = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
    assert names == {"model.keras", "export.json", "data/tokenizer.json"}
    about = json.loads((done.folder / "export.json").read_text())
    assert about["preparation"][0]["fitted"]["tokenizer"] == "data/tokenizer.json"


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_formats_of_other_runtimes_have_the_same_answers(loaded, tmp_path, format):
    pytest.importorskip({"onnx": "tf2onnx", "litert": "ai_edge_litert"}[format])
    done = loaded("table").export(format, tmp_path / "out")
    assert done.difference <= 1e-5
    assert done.outside[0].startswith("rows are prepared outside, as ")


def test_a_quantized_export_tells_its_figures_on_the_test_rows(loaded, tmp_path):
    pytest.importorskip("ai_edge_litert")
    done = loaded("table").export("litert", tmp_path / "out", quantize="float16")
    assert set(done.scores["run"]) == {"kind_accuracy", "price_mean_absolute_error"}
    assert done.scores["export"] == pytest.approx(done.scores["run"], rel=0.01)
    assert json.loads((done.folder / "export.json").read_text())["weights"] == "weights of 16 bits"


def test_an_export_that_differs_is_refused_and_leaves_nothing(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "TOLERANCE", -1.0)
    with pytest.raises(FinetuneError) as caught:
        loaded("images").export("safetensors", tmp_path / "out")
    assert str(caught.value).startswith(
        "An export answers as the run does, with a difference of -1 at most. `safetensors` differs by 0 in `"
    )
    assert str(caught.value).endswith("on 6 rows of the test split. Nothing was written.")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_user_are_compared_where_the_data_of_the_run_are_gone(loaded, tmp_path):
    (tmp_path / "new.csv").write_text("age,town\n4,Bonn\n5,Ulm\n")
    done = loaded("table").export("safetensors", tmp_path / "out", data=[tmp_path / "new.csv"])
    assert (done.rows, done.difference) == (2, 0.0)
