import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors", "tiny.keras"])
def test_inspect_lists_weights_without_loading_tensorflow(without_tensorflow, environment, name, tiny_files, tmp_path):
    arrays = {"kernel": np.ones((2, 3), "float32")}
    np.savez(tmp_path / "m.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    path = tiny_files / name if name == "tiny.keras" else tmp_path / name
    command = [sys.executable, "-c", without_tensorflow.replace(', "numpy", "h5py"', ""), "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("head/0" if name == "tiny.keras" else "kernel  ") in done.stdout


def test_inspect_prints_json_on_request_and_a_message_alone_for_what_is_no_weight_file(finetune, refused, tmp_path):
    np.savez(tmp_path / "m.npz", kernel=np.ones((2, 3), "float32"))
    listed = json.loads(finetune("inspect", tmp_path / "m.npz", "--json").stdout)
    assert (listed["kind"], listed["parameters"], listed["weights"][0]["name"]) == ("npz", 6, "kernel")
    (tmp_path / "m.txt").write_text("hello")
    assert refused("inspect", tmp_path / "m.txt").startswith("error: Known formats are `.keras`")


@pytest.mark.slow
def test_reference_writes_outputs_that_a_run_is_held_to(finetune, refused, tiny_files, recipe, tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((2, 6), "float32"))
    done = finetune("reference", tiny_files / "tiny.keras", tmp_path / "r.npz", "--input", tmp_path / "rows.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["input: 2x6", "output: 2x3"]
    restore = ["--set", f"restore.from={tiny_files / 'tiny.keras'}", "--set", f"restore.verify={tmp_path / 'r.npz'}"]
    np.savez(tmp_path / "r.npz", input=np.ones((2, 6)), output=np.zeros((2, 3)))
    message = refused("run", recipe, *restore, "--out", tmp_path / "out")
    assert "`output` differs by up to" in message
    assert not (tmp_path / "out").exists()
