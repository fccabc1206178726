"""`finetune compare`: tables and a page."""

import json

import pytest

from finetune.commands.compare import compare, runs_in
from finetune.errors import FinetuneError


@pytest.fixture
def runs(tmp_path):
    """A folder of three runs that differ in their seeds, the last of them unfinished."""
    for seed in (7, 8, 10):
        folder = tmp_path / "set" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"seed: {seed}\n")
        (folder / "plan.txt").write_text("")
        (folder / "metrics.csv").write_text("epoch,loss\n1,2.0\n2,1.0\n")
        result = {"metrics": {"accuracy": seed / 10}, "seconds": {"train": 5.0}}
        if seed < 10:
            (folder / "result.json").write_text(json.dumps(result))
    return tmp_path / "set"


def test_a_folder_stands_for_its_runs_in_the_order_of_their_numbers(runs):
    assert [path.name for path in runs_in(runs)] == ["seed-7", "seed-8", "seed-10"]
    tables = compare([runs])
    assert [title.partition(",")[0] for title, *_ in tables] == [
        "Results on the test rows",
        "Mean of 2 seeds",
        "Recipes",
    ]
    assert tables[0][2][2][1:] == ("-", "not finished")
    assert tables[1][2] == [("accuracy", "0.75", "0.1147 to 1.385")]
    assert tables[2][2] == [("seed", "7", "8", "10")]


def test_a_page_has_the_tables_and_the_curves_of_all_runs(runs, tmp_path):
    compare([runs / "seed-7", runs / "seed-8"], out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Comparison of 2 runs" in page
    assert "seed-8: 2 at epoch 1, 1 at 2" in page
    assert "<script" not in page


def test_fewer_than_two_runs_are_refused(runs, tmp_path):
    with pytest.raises(FinetuneError, match=r"A comparison is of two runs or more. Received 1. Name run folders"):
        compare([runs / "seed-7", runs / "seed-7"])
    with pytest.raises(FinetuneError, match=r"is no run folder"):
        compare([tmp_path / "none", runs])
