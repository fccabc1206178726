"""Keras files with the preparation of tables inside and answers as outputs, made of Keras' layers and operations."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune.build.source_keys import network_inputs
from finetune.inference.answers import class_labels
from finetune.inference.exports.conversion import Job, Written
from finetune.inference.exports.raw_graph import RawGraph, answer_prefix
from finetune.inference.record import InputRecord, OutputRecord
from finetune.models.output_names import by_output_name, of_output

ops: Any = keras.ops  # whose declared types are those of every backend

FILE = "model.keras"
_OTHER = "\x01"  # stands for every other text; no name of a category or a class


def write(job: Job) -> Written:
    """Writes a `.keras` file that takes the columns of a table, or what the model takes, and gives answers.

    Keras has no layers that decode files and none that tokenize as training did, so these rows are prepared outside.
    """
    graph, symbols, made = RawGraph(), {}, {}
    tensors, by_name = network_inputs(job.model), {each.name: each for each in job.record.inputs}
    outside: list[str] = []
    for name, tensor in tensors.items():
        each = by_name.get(name) or (job.record.inputs[0] if len(tensors) == 1 else None)
        if each and each.kind == "features":
            made[name] = _features(graph, symbols, each)
            continue
        shape, dtype = tuple(tensor.shape), tensor.dtype
        key = graph.take(name, "prepared", dtype, "what the model takes", shape)
        symbols[key] = made[name] = keras.Input(shape[1:], dtype=dtype, name=key)
        outside = ["files and texts are prepared outside, as Keras has no layers for it: `export.json` says how"]
    outputs = job.model(made if len(tensors) > 1 else made[next(iter(tensors))], training=False)
    answers: dict[str, Any] = {}
    for record in job.record.outputs:
        named = by_output_name(job.model, outputs)
        prefix = answer_prefix(record)
        values = of_output(named, record.name)
        answers |= {f"{prefix}{name}": value for name, value in _answers(record, values).items()}
    keras.Model(symbols, answers, name="exported").save(job.folder / FILE)
    return Written(FILE, graph.inputs, outside if any(each.kind != "array" for each in job.record.inputs) else ())


def _features(graph: RawGraph, symbols: dict[str, Any], each: InputRecord) -> Any:
    parts = []
    for column, about in each.fitted.items():
        is_category = about["kind"] == "category"
        if is_category:
            key = graph.take(column, "text", tf.string, "a category as text; empty where it is missing", (None, 1))
        else:
            key = graph.take(column, "number", tf.float64, "a number; NaN where it is missing", (None, 1))
        if key not in symbols:
            symbols[key] = keras.Input((1,), dtype="string" if is_category else "float64", name=key)
        parts.append(_one_hot(symbols[key], about["categories"]) if is_category else _normalized(symbols[key], about))
    return ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _one_hot(texts: Any, categories: Sequence[str]) -> Any:
    """Returns the places of categories: the first is that of all others."""
    return keras.layers.StringLookup(vocabulary=list(categories), oov_token=_OTHER, output_mode="one_hot")(texts)


def _normalized(values: Any, about: Any) -> Any:
    """Returns numbers with mean 0 and variance 1, computed in float64 as at training."""
    mean, deviation = float(about["mean"]), float(about["variance"] ** 0.5 or 1.0)
    centred = ops.where(ops.isnan(values), ops.zeros_like(values), ops.subtract(values, mean))
    return ops.cast(ops.divide(centred, deviation), "float32")


def _answers(record: OutputRecord, values: Any) -> dict[str, Any]:
    values = ops.cast(values, "float32")
    if record.kind == "numbers" or len(values.shape) > 2:
        return {"values": values}
    is_single = values.shape[-1] == 1 and record.kind == "classes"
    if record.logits:
        values = ops.sigmoid(values) if is_single or record.kind == "labels" else ops.softmax(values)
    elif "hinge" in record.loss.replace("_", "").lower() and "categorical" not in record.loss.lower():
        values = ops.clip((values + 1.0) / 2.0, 0.0, 1.0)
    probabilities = ops.concatenate([1.0 - values, values], axis=-1) if is_single else values
    names = class_labels(record, probabilities.shape[-1])
    if record.kind == "labels":
        return {"probabilities": probabilities}
    label = keras.layers.StringLookup(vocabulary=names, num_oov_indices=0, oov_token=_OTHER, invert=True)
    return {"probabilities": probabilities, "label": label(ops.argmax(probabilities, axis=-1))}
