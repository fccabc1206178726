import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.inference.answers import probabilities_of
from finetune.inference.exports.conversion import Job
from finetune.inference.exports.litert import write


def test_a_file_answers_prepared_rows_in_batches_of_any_size(loaded, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    fine_tuned = loaded("arrays")
    written = write(Job(fine_tuned.record, fine_tuned.model, tmp_path))
    [taken] = written.inputs
    answer = interpreter.Interpreter(str(tmp_path / written.file)).get_signature_runner("serving_default")
    for rows in (1, 5):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype("float32")
        probabilities = probabilities_of(fine_tuned.record.outputs[0], np.asarray(fine_tuned.model(x)))
        np.testing.assert_allclose(answer(**{taken.name: x})["probabilities"], probabilities, atol=1e-6)


def test_quantized_weights_take_less_room(loaded, tmp_path):
    layers = [keras.layers.Dense(64) for _ in range(3)]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(1)])
    sizes = {}
    for quantize in (None, "float16", "int8"):
        folder = tmp_path / str(quantize)
        folder.mkdir()
        written = write(Job(loaded("arrays").record, model, folder, quantize))
        sizes[quantize] = (folder / written.file).stat().st_size
        assert ("weights" in written.more) == bool(quantize)
    assert sizes["int8"] < 0.8 * sizes["float16"] < 0.6 * sizes[None]


def test_an_operation_that_the_format_lacks_is_named(loaded, tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(1)(keras.ops.erfinv(x)), name="net")
    with pytest.raises(FinetuneError, match=r"`net`: LiteRT has no `Erfinv`. Export it as `savedmodel`"):
        write(Job(loaded("arrays").record, model, tmp_path))
