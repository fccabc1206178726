"""A sample of the script that changes single bits: every change is found."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "bench_audit.py"
spec = importlib.util.spec_from_file_location("bench_audit", SCRIPT)
bench_audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_audit)


@pytest.fixture
def run(tmp_path):
    from finetune.results.hashes import write_hashes

    (tmp_path / "w.npz").write_bytes(bytes(range(256)))
    folder = tmp_path / "out"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"data: {{npz: {tmp_path}/w.npz}}\n")
    (folder / "plan.txt").write_text("plan")
    (folder / "checkpoints" / "a.safetensors").write_bytes(b"\0" * 5000)
    write_hashes(folder, {}, [tmp_path / "w.npz"])
    return folder


def test_every_changed_bit_is_found_and_undone(run):
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    assert bench_audit.count_found(run, 100) == (100, [])
    assert {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()} == before
