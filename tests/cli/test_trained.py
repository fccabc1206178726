import json

import numpy as np
import pytest


@pytest.mark.slow
def test_a_run_is_evaluated_and_asked_from_the_command_line(finetune, refused, recipe, tmp_path):
    assert finetune("run", recipe, "--out", tmp_path / "run").returncode == 0
    figures = json.loads(finetune("evaluate", tmp_path / "run", "--json").stdout)
    assert figures["metrics"] == json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    np.save(tmp_path / "rows.npy", np.ones((3, 6), "float32"))
    done = finetune("predict", tmp_path / "run", tmp_path / "rows.npy", "--top-k", "1")
    assert done.returncode == 0
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == [
        "rows.npy:0",
        "rows.npy:1",
        "rows.npy:2",
    ]


def test_what_needs_no_tensorflow_is_checked_before_it_starts(refused, tmp_path):
    assert "there is no such folder" in refused("evaluate", tmp_path / "none")
    assert "is no run folder" in refused("predict", tmp_path, "-")
