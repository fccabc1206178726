import json

import pytest


@pytest.mark.slow
def test_a_run_is_exported_from_the_command_line_and_the_difference_is_printed(finetune, refused, recipe, tmp_path):
    assert finetune("run", recipe, "--out", tmp_path / "run").returncode == 0
    done = finetune("export", tmp_path / "run", "--out", tmp_path / "out", "--format", "safetensors")
    assert done.returncode == 0
    assert "largest difference from the run: 0, on 30 rows of the test split, in a new process" in done.stdout
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == "safetensors"
    message = refused("export", tmp_path / "run", "--out", tmp_path / "out")
    assert "is not empty. Choose another place." in message


def test_what_needs_no_tensorflow_is_checked_before_it_starts(refused, tmp_path):
    assert "is no run folder" in refused("export", tmp_path, "--out", tmp_path / "out")
