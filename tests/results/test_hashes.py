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
    for name in ("photo é.png", "w.npz"):
        (tmp_path / name).write_bytes(name.encode())
    folder = tmp_path / "out"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.weights.h5").write_bytes(b"weights")
    (folder / "plan.txt").write_text("plan")
    (folder / "recipe.yaml").write_text("seed: 1")
    (folder / "result.json").write_text("{}")
    write_hashes(folder, {"recalibrate": True}, [tmp_path / "w.npz", tmp_path / "photo é.png", tmp_path / "w.npz"])
    return folder


def test_a_run_whose_files_are_as_they_were_holds(run):
    result = check_hashes(run)
    assert (result.holds, result.unchanged, result.by_time, result.options) == (True, 6, 0, {"recalibrate": True})
    assert result.added == ()


def test_what_a_killed_process_was_writing_is_no_file_of_the_run(run):
    (run / ".writing-former").mkdir()
    for name in (".writing-hashes.json", "checkpoints/.writing-last.weights.h5", ".writing-former/result.json"):
        (run / name).write_text("half")
    assert check_hashes(run).added == ()
    write_hashes(run, {})
    assert (check_hashes(run).unchanged, check_hashes(run).holds) == (4, True)


@pytest.mark.parametrize("name", ["checkpoints/last.weights.h5", "recipe.yaml", "../photo é.png"])
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
    write_hashes(run, {}, run.parent.glob("*.*"))
    assert check_hashes(run).by_time == 2
    os.utime(run.parent / "w.npz", (1, 1))
    assert check_hashes(run).changed == (str(run.parent / "w.npz"),)


def test_a_file_that_is_written_again_is_brought_in(run):
    (run / "plan.txt").write_text("another")
    write_hashes_again(run, ["plan.txt"])
    assert check_hashes(run).holds
    (run / FILE).unlink()
    write_hashes_again(run, ["plan.txt"])
    assert not (run / FILE).exists()


def test_hashes_that_were_changed_are_refused_also_where_they_mean_the_same(run):
    text = (run / FILE).read_text()
    document = json.loads(text)
    document["files"]["plan.txt"] = "0" * 64
    assert "\\u00e9" in text
    for changed in (json.dumps(document, indent=2) + "\n", text.replace("\\u00e9", "\\u00E9"), "[]", "{"):
        (run / FILE).write_text(changed)
        with pytest.raises(
            FinetuneError, match=r"hashes.json` is not as the run wrote it, so an audit can show nothing"
        ):
            check_hashes(run)


def test_a_run_without_hashes_a_folder_without_a_run_and_a_later_format_are_refused(run, tmp_path):
    document = json.loads((run / FILE).read_text()) | {"format": 7}
    document["sha256"] = hashes._own(document)
    (run / FILE).write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(FinetuneError, match=r"has the format 7, and this version reads 1"):
        check_hashes(run)
    (run / FILE).unlink()
    with pytest.raises(FinetuneError, match=r"There is no `.*hashes.json`: an older version made the run"):
        check_hashes(run)
    (run / "result.json").unlink()
    with pytest.raises(FinetuneError, match=r"the run has not ended. `finetune resume .*out` ends it"):
        check_hashes(run)
    with pytest.raises(FinetuneError, match=r"is no run folder: it has no `recipe.yaml`"):
        check_hashes(tmp_path)
