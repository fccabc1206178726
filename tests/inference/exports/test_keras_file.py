"""A Keras file takes columns and gives labels, with nothing but Keras."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.inference.exports.compared_rows import arrays_for
from finetune.inference.exports.conversion import Job
from finetune.inference.exports.export import expected_answers
from finetune.inference.exports.keras_file import write
from finetune.inference.raw_rows import RawRows

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def answers_of(fine_tuned, rows, folder):
    written = write(Job(fine_tuned.record, fine_tuned.model, folder))
    with zipfile.ZipFile(folder / written.file) as archive:
        assert "finetune" not in json.dumps(json.loads(archive.read("config.json")))
    model = keras.models.load_model(folder / written.file)
    arrays = arrays_for(written.inputs, fine_tuned, rows)
    return model({name: tf.constant(array) for name, array in arrays.items()}), written


def test_columns_of_a_table_are_inputs_and_missing_values_are_those_of_training(loaded, tmp_path):
    fine_tuned = loaded("table")
    columns = {"age": [3, "NA", 12.5, 7], "town": ["Ulm", "", "Rome", "7"]}
    rows = RawRows(columns, [f"row {number}" for number in range(4)])
    answers, written = answers_of(fine_tuned, rows, tmp_path)
    assert [each.name for each in written.inputs] == ["age", "town"]
    assert not written.outside
    for name, expected in expected_answers(fine_tuned, rows).items():
        np.testing.assert_allclose(answers[name], expected, rtol=1e-5, atol=1e-6)
    labels = [answer["kind"]["label"] for answer in fine_tuned.predict(columns)]
    assert [label.decode() for label in answers["kind_label"].numpy()] == labels


def test_what_keras_has_no_layers_for_is_prepared_outside_and_said(loaded, tmp_path):
    fine_tuned = loaded("labels")
    rows = RawRows({"text": ["red box", "blue"], "size": [3, 4]}, ["a", "b"])
    answers, written = answers_of(fine_tuned, rows, tmp_path)
    assert {each.name: each.kind for each in written.inputs} == {"ids": "prepared", "size": "number"}
    assert written.outside == [
        "files and texts are prepared outside, as Keras has no layers for it: `export.json` says how"
    ]
    np.testing.assert_allclose(answers["probabilities"], expected_answers(fine_tuned, rows)["probabilities"], atol=1e-6)
