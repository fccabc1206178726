import json

import numpy as np
from safetensors import safe_open

from finetune.groups.layer_tree import layer_tree
from finetune.inference.exports.conversion import Job
from finetune.inference.exports.safetensors_file import write


def test_weights_have_their_names_in_the_layer_tree_and_the_classes_are_metadata(loaded, tmp_path):
    fine_tuned = loaded("images")
    written = write(Job(fine_tuned.record, fine_tuned.model, tmp_path))
    leaves = layer_tree(fine_tuned.model).leaves
    assert written.more == {"tensors": len(leaves)}
    with safe_open(tmp_path / written.file, "numpy") as file:
        assert json.loads(file.metadata()["classes"]) == {"output": ["blue", "green", "red"]}
        assert set(file.keys()) == {leaf.name for leaf in leaves}
        for leaf in leaves:
            np.testing.assert_array_equal(file.get_tensor(leaf.name), np.asarray(leaf.variable))
