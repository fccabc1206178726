import json

import numpy as np
import pytest

from finetune.commands.inspect import inspect
from finetune.errors import RestoreError


@pytest.fixture
def weights(tmp_path):
    np.savez(tmp_path / "w.npz", kernel=np.ones((2, 3), "float32"), bias=np.ones(3, "float64"))
    return tmp_path / "w.npz"


def test_every_weight_has_a_row_with_role_shape_and_type(weights):
    rows = [line.split() for line in inspect(weights).splitlines()]
    assert ["kernel", "weight", "2x3", "float32"] in [row[:4] for row in rows]
    assert ["bias", "weight", "3", "float64"] in [row[:4] for row in rows]


def test_json_holds_the_same_as_data(weights):
    listed = json.loads(inspect(str(weights), json=True))
    assert (listed["kind"], listed["parameters"]) == ("npz", 9)
    assert {row["name"]: row["shape"] for row in listed["weights"]} == {"kernel": [2, 3], "bias": [3]}


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path):
    with pytest.raises(RestoreError, match=r"nowhere\.npz"):
        inspect(tmp_path / "nowhere.npz")


def test_a_run_folder_is_listed_as_a_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    (tmp_path / "plan.txt").write_text("plan\n")
    assert inspect(tmp_path).startswith(f"run {tmp_path}: not finished")
    assert json.loads(inspect(tmp_path, json=True))["kind"] == "run"
