"""Hashes of a run folder: every change of a file is found."""

import json
import os

import pytest

from finetune.errors import FinetuneError
from finetune.results import hashes
from finetune.results.hashes import FILE, check_hashes, write_hashes, write_hashes_again


@pytest.fixture
def run(tmp_path):
    """A run folder with hashes, and two files outside of it that the run has read."""
    for name in ("1.png", "model.ckpt.data-0"):
        (tmp_path / name).write_bytes(name.encode())
    folder = tmp_path / "out"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.weights.h5").write_bytes(b"weights")
    (folder / "plan.txt").write_text("plan")
    (folder / "recipe.yaml").write_text("model: {}")
    write_hashes(folder, {"recalibrate": True}, [tmp_path / "1.png", tmp_path / "model.ckpt.data-0"])
    return folder


def test_a_run_that_nobody_has_touched_holds(run):
    result = check_hashes(run)
    assert (result.holds, result.unchanged, result.by_time, result.options) == (True, 5, 0, {"recalibrate": True})
    assert result.added == ()


@pytest.mark.parametrize("name", ["checkpoints/last.weights.h5", "recipe.yaml", "../1.png", "../model.ckpt.data-0"])
def test_a_changed_and_a_missing_file_are_named_and_a_new_one_is_no_fault(run, name):
    path = (run / name).resolve()
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    shown = name if not name.startswith("..") else str(path)
    assert check_hashes(run).changed == (shown,)
    path.unlink()
    (run / "notes.txt").write_text("mine")
    result = check_hashes(run)
    assert (result.missing, result.added, result.holds) == ((shown,), ("notes.txt",), False)


def test_files_that_are_large_are_compared_by_size_and_time(run, monkeypatch):
    monkeypatch.setattr(hashes, "MOST_BYTES", 10)
    write_hashes(run, {}, [run.parent / "1.png"])
    assert check_hashes(run).by_time == 0
    monkeypatch.setattr(hashes, "MOST_BYTES", 4)
    write_hashes(run, {}, [run.parent / "1.png"])
    assert check_hashes(run).by_time == 1
    os.utime(run.parent / "1.png", (1, 1))
    assert check_hashes(run).changed == (str(run.parent / "1.png"),)


def test_a_file_that_is_written_again_is_brought_in(run):
    (run / "plan.txt").write_text("another")
    write_hashes_again(run, ["plan.txt"])
    assert check_hashes(run).holds
    (run / FILE).unlink()
    write_hashes_again(run, ["plan.txt"])
    assert not (run / FILE).exists()


def test_hashes_that_were_changed_prove_nothing(run):
    document = json.loads((run / FILE).read_text())
    document["files"]["plan.txt"] = "0" * 64
    for text in (json.dumps(document), "[]", "{"):
        (run / FILE).write_text(text)
        with pytest.raises(
            FinetuneError, match=r"hashes.json` is not as the run wrote it, so an audit can show nothing"
        ):
            check_hashes(run)


def test_a_run_without_hashes_a_folder_without_a_run_and_a_later_format_are_refused(run, tmp_path):
    document = json.loads((run / FILE).read_text()) | {"format": 7}
    document["sha256"] = hashes._own(document)
    (run / FILE).write_text(json.dumps(document))
    with pytest.raises(FinetuneError, match=r"has the format 7, and this version reads 1"):
        check_hashes(run)
    (run / FILE).unlink()
    with pytest.raises(
        FinetuneError, match=r"There is no `.*hashes.json`: the run has not ended. `finetune resume .*` ends it"
    ):
        check_hashes(run)
    with pytest.raises(FinetuneError, match=r"is no run folder: it has no `recipe.yaml`"):
        check_hashes(tmp_path)
