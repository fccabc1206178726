"""SavedModels: raw rows in, answers out, by signatures; for TensorFlow Hub also the model, to be trained further.

Signatures: `serving_default` takes raw rows, `features` what the model takes; both give answers. `class_names` takes
nothing and gives the names by their numbers.
"""

from typing import Any

import tensorflow as tf

from finetune.errors import FinetuneError, reason
from finetune.inference.exports.conversion import Job, Written
from finetune.inference.exports.raw_graph import RawGraph, answers_in_graph, prepared_graph, raw_graph
from finetune.models.hub_export import traced_call, write_saved_model


def write(job: Job) -> Written:
    """Writes a SavedModel that answers raw rows."""
    return _write(job, trainable=False)


def write_hub(job: Job) -> Written:
    """Writes a SavedModel that answers raw rows, and that `hub.load` gives as a callable with trainable variables."""
    return _write(job, trainable=True)


def _write(job: Job, *, trainable: bool) -> Written:
    # A module to be trained further must open wherever TensorFlow does, so that it takes token ids.
    graph = raw_graph(job.record, job.model, None if trainable else job.rows)
    signatures = {"serving_default": answering(job, graph), "features": answering(job, prepared_graph(job.model))}
    names = [list(each.names) for each in job.record.outputs if each.kind != "numbers" and each.names]
    if len(names) == 1:
        signatures["class_names"] = _constant(names[0])
    save(job, signatures, trainable=trainable)
    return Written(".", graph.inputs, graph.outside, {"signatures": sorted(signatures)}, graph.imports)


def save(job: Job, signatures: dict[str, Any], *, trainable: bool = False) -> None:
    """Writes a SavedModel with some signatures.

    Args:
        job: The export.
        signatures: Traced functions by name.
        trainable: Whether the model itself can be called, with `training`.

    Raises:
        FinetuneError: TensorFlow cannot save the model.
    """
    try:
        call = traced_call(job.model) if trainable else None
        write_saved_model(job.model, call, job.folder, signatures)
    except (ValueError, AssertionError, TypeError) as error:
        raise FinetuneError(
            f"A model is exported as a graph of TensorFlow. `{job.model.name}` cannot be saved so: {reason(error)}."
        ) from error


def answering(job: Job, graph: RawGraph, *, texts: bool = True) -> Any:
    """Returns the function, traced, that gives answers for the inputs of a graph.

    Args:
        job: The export.
        graph: How inputs of the model are made.
        texts: Whether labels are among the answers.
    """
    names = [each.name for each in graph.inputs]

    @tf.function(autograph=False, input_signature=[each.spec for each in graph.inputs])
    def answer(*tensors: Any) -> dict[str, Any]:
        inputs = graph.prepare(dict(zip(names, tensors, strict=True)))
        return answers_in_graph(job.record.outputs, job.model, job.model(inputs, training=False), texts=texts)

    return answer


def _constant(names: list[str]) -> Any:
    @tf.function(autograph=False, input_signature=[])
    def class_names() -> dict[str, Any]:
        return {"class_names": tf.constant(names)}

    return class_names
