"""LiteRT files (once TensorFlow Lite): prepared rows in, probabilities out, for phones and small machines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.files.temporary_folders import temporary_folder
from finetune.inference.exports.conversion import Job, Written, not_converted, quiet_converter
from finetune.inference.exports.raw_graph import prepared_graph
from finetune.inference.exports.saved_model import answering, save
from finetune.machine_failures import raise_machine_failure

FILE = "model.tflite"


def write(job: Job) -> Written:
    """Writes a LiteRT file with the signature `serving_default`, quantized if the job says so.

    Raises:
        FinetuneError: The network has an operation that LiteRT does not have.
    """
    graph = prepared_graph(job.model)
    with temporary_folder() as folder:
        save(replace(job, folder=folder), {"serving_default": answering(job, graph, texts=False)})
        content = _converted(folder, job)
    (job.folder / FILE).write_bytes(content)
    outside = ["rows are prepared outside, as LiteRT has neither files nor texts: `export.json` says how"]
    weights = {"int8": "weights of 8 bits, activations of 32", "float16": "weights of 16 bits"}
    return Written(FILE, graph.inputs, outside, {"weights": weights[job.quantize]} if job.quantize else {})


def _converted(folder: Path, job: Job) -> bytes:
    converter: Any = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
    if job.quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job.quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    try:
        with quiet_converter():
            return converter.convert()
    except Exception as error:  # the converter raises errors of many classes
        raise_machine_failure(error, "Converting to LiteRT")
        raise not_converted("LiteRT", job.model, error) from error
