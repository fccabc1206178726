"""Safetensors files: the weights alone, under their names in the layer tree."""

import json

from safetensors.numpy import save_file

from finetune.groups.layer_tree import layer_tree
from finetune.inference.exports.conversion import Job, Written
from finetune.keras_private import stored_value

FILE = "model.safetensors"


def write(job: Job) -> Written:
    """Writes the weights, with the names of the classes among the metadata of the file."""
    weights = {leaf.name: stored_value(leaf.variable).numpy() for leaf in layer_tree(job.model).leaves}
    classes = {each.name or "output": list(each.names) for each in job.record.outputs if each.names}
    save_file(weights, job.folder / FILE, metadata={"format": "tf", "classes": json.dumps(classes)})
    outside = ["these are weights without a network: build it in code, or from the recipe, and restore them"]
    return Written(FILE, (), outside, {"tensors": len(weights)})
