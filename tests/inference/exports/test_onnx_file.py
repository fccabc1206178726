import json

import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.inference.exports.conversion import Job
from finetune.inference.exports.onnx_file import write


def test_a_file_answers_prepared_rows_and_names_the_classes(loaded, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    fine_tuned = loaded("images")
    written = write(Job(fine_tuned.record, fine_tuned.model, tmp_path))
    [taken] = written.inputs
    session = runtime.InferenceSession(tmp_path / written.file)
    x = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype("float32")
    [probabilities] = session.run(["probabilities"], {taken.name: x})
    outputs = np.asarray(fine_tuned.model(x), np.float64)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities.argmax(axis=1) == outputs.argmax(axis=1)).all()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == {"output": ["blue", "green", "red"]}


def test_an_operation_that_the_format_lacks_is_named(loaded, tmp_path):
    pytest.importorskip("tf2onnx")
    x = keras.Input((2, 2))
    model = keras.Model(x, keras.layers.Reshape((1,))(keras.ops.slogdet(x)[1]), name="net")
    with pytest.raises(FinetuneError, match=r"`net`: ONNX has no `LogMatrixDeterminant`. Export it as `savedmodel`"):
        write(Job(loaded("arrays").record, model, tmp_path))
