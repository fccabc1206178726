"""ONNX files: prepared rows in, probabilities out, for ONNX Runtime and all that reads ONNX."""

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from finetune.inference.exports.conversion import Job, Written, not_converted, quiet_converter
from finetune.inference.exports.raw_graph import prepared_graph
from finetune.inference.exports.saved_model import answering
from finetune.machine_failures import raise_machine_failure

FILE = "model.onnx"
_OPSET = 18


def write(job: Job) -> Written:
    """Writes an ONNX file; names of the classes are among its metadata.

    Raises:
        FinetuneError: The network has an operation that ONNX does not have.
    """
    tf2onnx: Any = import_module("tf2onnx")  # optional
    graph = prepared_graph(job.model)
    answer = answering(job, graph, texts=False)
    try:
        with quiet_converter():
            made: Any = tf2onnx.convert.from_function(
                answer, input_signature=[each.spec for each in graph.inputs], opset=_OPSET
            )
    except Exception as error:  # the converter raises errors of many classes
        raise_machine_failure(error, "Converting to ONNX")
        raise not_converted("ONNX", job.model, error) from error
    proto = made[0]
    if unknown := list(_unknown(proto.graph)):
        raise not_converted("ONNX", job.model, unknown)
    about = {"classes": {each.name or "output": list(each.names) for each in job.record.outputs if each.names}}
    for name, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value, ensure_ascii=False)
    (job.folder / FILE).write_bytes(proto.SerializeToString())
    outside = ["rows are prepared outside, as ONNX has no files: `export.json` says how"]
    return Written(FILE, graph.inputs, outside, {"opset": _OPSET})


def _unknown(graph: Any) -> Iterator[str]:
    """Yields the operations that are not ONNX's: those that the converter has left as TensorFlow has them."""
    defined: Any = import_module("onnx").defs
    for node in graph.node:
        if not defined.has(node.op_type, node.domain):
            yield node.op_type
        for attribute in node.attribute:  # branches and bodies of loops
            for inner in (attribute.g, *attribute.graphs):
                yield from _unknown(inner)
