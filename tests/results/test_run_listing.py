import json

import pytest

from finetune.errors import FinetuneError
from finetune.results.run_listing import list_run, run_text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    (tmp_path / "plan.txt").write_text("plan\n")
    data = {"source": {"kind": "images", "folder": "photos"}, "rows": {"train": 1200, "test": 3}}
    (tmp_path / "data.json").write_text(json.dumps(data | {"class_names": ["cat", "dog\x1b[2J"]}))
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.png").write_bytes(b"1234")
    return tmp_path


def test_a_run_that_is_not_finished_says_how_to_go_on(folder):
    listing = list_run(folder)
    assert (listing["finished"], listing["files"]["plots"]) == (False, 4)
    text = run_text(folder, listing)
    assert text.splitlines()[:3] == [
        f"run {folder}: not finished: `finetune resume {folder}` goes on",
        "data: images photos; rows: 1,200 train, 3 test",
        r"classes: cat, dog\x1b[2J",
    ]


def test_a_finished_run_shows_its_figures_and_what_is_wrong(folder):
    result = {"metrics": {"loss": 0.25, "auc": None}, "frozen_unchanged": True, "warnings": ["it diverged"]}
    (folder / "result.json").write_text(json.dumps(result | {"seconds": {"load": 1, "train": 3}}))
    lines = run_text(folder, list_run(folder)).splitlines()
    assert lines[0] == f"run {folder}: finished"
    assert lines[3:7] == [
        "test loss: 0.2500",
        "frozen tensors unchanged: yes",
        "warning: it diverged",
        "took: 4 s, 3 s of them training",
    ]


def test_a_damaged_file_is_named(folder):
    (folder / "result.json").write_text("[]")
    with pytest.raises(
        FinetuneError, match=r"`.*result\.json` cannot be: its content must be a mapping, and is a list"
    ):
        list_run(folder)
