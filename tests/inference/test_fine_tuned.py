import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.build.data import build_examples, precision
from finetune.data.rows import rows_of, take_batch
from finetune.errors import DataError, FinetuneError
from finetune.inference.fine_tuned import FineTuned, _with_every_output, load
from finetune.models.output_names import by_output_name
from finetune.recipe.loader import load_recipe

# Where the raw rows of each kind lie beside the run, all of them or those that the run was tested on.
RAW = {"images": "photos", "table": "rows.csv", "labels": "rows.tsv", "audio": "clips", "arrays": "rows.npz"}


@pytest.mark.parametrize("kind", list(RAW))
def test_raw_rows_get_the_outputs_that_the_run_itself_computes(kind, loaded):
    fine_tuned = loaded(kind)
    folder = fine_tuned.record.folder
    recipe = load_recipe(folder / "recipe.yaml")
    with precision(recipe):
        examples = build_examples(recipe, fine_tuned.model)
    raw = [each for chunk in fine_tuned.read([folder.parent / RAW[kind]]) for each in _by_place(fine_tuned, chunk)]
    outputs = dict(raw)
    places = examples.places.get("test") or [f"rows.npz:{n}" for n in range(8)]
    inputs = take_batch(rows_of(examples.x_test), np.arange(len(places)))
    expected = by_output_name(fine_tuned.model, fine_tuned.model(inputs, training=False))
    for name, values in expected.items():
        own = np.array(
            [
                outputs[place if kind in ("table", "labels", "arrays") else _under(folder, kind, place)][name]
                for place in places
            ]
        )
        np.testing.assert_allclose(own, np.asarray(values), atol=1e-6)


def _under(folder, kind, place):
    return str(folder.parent / RAW[kind] / place)


def _by_place(fine_tuned, chunk):
    values = by_output_name(fine_tuned.model, fine_tuned.model.predict_on_batch(fine_tuned.prepare(chunk)))
    return [(place, {name: of[n] for name, of in values.items()}) for n, place in enumerate(chunk.places)]


def test_answers_are_labels_with_probabilities_or_numbers_by_the_name_of_the_output(loaded):
    red, blue = loaded("images").predict(
        [Image.new("RGB", (20, 20), (250, 0, 0)), np.full((9, 9, 3), (0, 0, 250), np.uint8)], top=2
    )
    assert (red["label"], blue["label"]) == ("red", "blue")
    assert len(red["top"]) == 2
    assert red["top"][0] == {"label": "red", "probability": red["probability"]}
    [answer] = loaded("table").predict({"age": [12], "town": ["Ulm"]})
    assert set(answer) == {"kind", "price"}
    assert answer["kind"]["label"] in ("new", "old")
    assert isinstance(answer["price"]["value"], float)
    [answer] = loaded("labels").predict([{"text": "green blue box", "size": 3}])
    assert set(answer["probabilities"]) == {"red", "green", "blue"}
    assert answer["labels"] == [name for name, value in answer["probabilities"].items() if value >= 0.5]
    assert loaded("labels").predict([{"text": "green", "size": 3}], threshold=0.0)[0]["labels"] == [
        "blue",
        "green",
        "red",
    ]
    assert loaded("arrays").predict(np.zeros((2, 4)))[0]["label"] in ("0", "1")


def test_a_row_that_cannot_be_read_is_named_or_skipped_in_its_place(loaded, tmp_path):
    fine_tuned = loaded("images")
    Image.new("RGB", (9, 9), (250, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9), (0, 250, 0)).save(tmp_path / "c.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"are images: JPEG, .*b\.png` is none of these"):
        fine_tuned.predict(tmp_path)
    found = list(fine_tuned.predictions(fine_tuned.read([tmp_path]), skip=True))
    assert [Path(each.place).name for each in found] == ["a.png", "b.png", "c.png"]
    assert [each.answer.get("label") for each in found] == ["red", None, "green"]
    assert "b.png` is none of these" in found[1].problem


def test_a_run_that_was_moved_without_its_data_predicts_the_same(run_of, loaded, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run_of("labels"), moved)
    rows = [{"text": "red box", "size": 1}]
    assert load(moved).predict(rows) == loaded("labels").predict(rows)


def test_a_run_that_is_not_finished_or_none_is_refused_with_what_to_do(run_of, tmp_path):
    with pytest.raises(FinetuneError, match="is no run folder"):
        load(tmp_path)
    begun = tmp_path / "begun"
    shutil.copytree(run_of("arrays"), begun)
    (begun / "result.json").unlink()
    with pytest.raises(FinetuneError, match=rf"is not: .* Finish it with `finetune resume {begun}`"):
        load(begun)
    with pytest.raises(FinetuneError, match=r"It holds runs: `.*begun"):
        load(tmp_path)


def test_a_single_loss_for_several_outputs_answers_with_each_of_them(loaded):
    fine_tuned = loaded("table")
    record = replace(fine_tuned.record, recipe={**fine_tuned.record.recipe, "train": {"loss": "mse"}})
    both = FineTuned(_with_every_output(record, fine_tuned.model), fine_tuned.model)
    assert [output.name for output in both.record.outputs] == ["kind", "price"]
    rows = {"age": [12], "town": ["Ulm"]}
    assert both.predict(rows)[0]["price"] == fine_tuned.predict(rows)[0]["price"]
    assert _with_every_output(fine_tuned.record, fine_tuned.model) is fine_tuned.record
