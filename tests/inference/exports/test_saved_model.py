"""SavedModels answer raw rows; for TensorFlow Hub they can be trained further."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import FinetuneError
from finetune.inference.exports.conversion import Job
from finetune.inference.exports.saved_model import save, write, write_hub


def test_signatures_take_raw_rows_and_prepared_rows_and_give_labels_and_names_of_classes(loaded, run_of, tmp_path):
    fine_tuned = loaded("images")
    written = write(Job(fine_tuned.record, fine_tuned.model, tmp_path))
    assert (written.file, written.more) == (".", {"signatures": ["class_names", "features", "serving_default"]})
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    files = sorted(run_of("images").parent.glob("photos/*/0.png"))
    answers = signatures["serving_default"](image=tf.constant([file.read_bytes() for file in files]))
    expected = fine_tuned.predict(files)
    assert [label.decode() for label in answers["label"].numpy()] == [answer["label"] for answer in expected]
    np.testing.assert_allclose(answers["probability"], [answer["probability"] for answer in expected], atol=1e-6)
    [name] = signatures["features"].structured_input_signature[1]
    prepared = signatures["features"](**{name: fine_tuned.prepare(next(fine_tuned.read(files)))})
    np.testing.assert_allclose(prepared["probabilities"], answers["probabilities"], atol=1e-6)
    assert signatures["class_names"]()["class_names"].numpy().tolist() == [b"blue", b"green", b"red"]


def test_a_model_for_hub_is_called_with_training_and_lists_its_variables(loaded, tmp_path):
    fine_tuned = loaded("labels")
    write_hub(Job(fine_tuned.record, fine_tuned.model, tmp_path))
    module = tf.saved_model.load(str(tmp_path))
    inputs = {"ids": tf.constant([[2, 5]]), "size": tf.constant([[3.0]])}
    order = [tensor.name for tensor in fine_tuned.model.inputs]
    with tf.GradientTape() as tape:
        outputs = module([inputs[name] for name in order], training=True)
        loss = tf.reduce_sum(outputs)
    assert all(gradient is not None for gradient in tape.gradient(loss, module.trainable_variables))
    np.testing.assert_allclose(outputs, fine_tuned.model(inputs), atol=1e-6)
    assert set(module.signatures) == {"serving_default", "features", "class_names"}


def test_what_tensorflow_cannot_save_is_an_error_with_its_reason(loaded, tmp_path):
    fine_tuned = loaded("arrays")
    job = Job(fine_tuned.record, fine_tuned.model, tmp_path)
    with pytest.raises(FinetuneError, match=f"`{fine_tuned.model.name}` cannot be saved so: "):
        save(job, {"serving_default": keras.layers.Dense(1)})
