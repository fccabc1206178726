"""Trackers get every row once, through kills and failures, and end with the run; a real package brings one here."""

import csv
import json
import random
import sys
from pathlib import Path

import pytest
import yaml

import finetune
from finetune.commands.audit import audit
from finetune.errors import TrainingError
from finetune.results.hashes import check_hashes
from finetune.training.trackers import Trackers

PACKAGE = """
import json, random
from pathlib import Path

class Notebook:
    def __init__(self, options):
        random.random()  # as services draw names
        if options.project == "closed":
            raise ConnectionError("nobody answers")
        self.id, self.place = options.id or "notebook-1", "notebook.jsonl"
        self.note("open", options.run, options.project, options.config["seed"], options.id)

    def note(self, *what):
        with open("notebook.jsonl", "a") as file:
            file.write(json.dumps(what) + "\\n")

    def log(self, rows):
        if Path("offline").exists():
            raise ConnectionError("no network")
        for row in rows:
            self.note(row.axis, row.number, dict(row.values))

    def end(self, state, figures, page):
        self.note("end", state, dict(figures), page and page.name)
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Installs a package with the tracker `notebook`; returns what the tracker has noted."""
    site = tmp_path / "site"
    (site / "notebook_tracker-1.0.dist-info").mkdir(parents=True)
    (site / "notebook_tracker.py").write_text(PACKAGE)
    (site / "notebook_tracker-1.0.dist-info" / "METADATA").write_text("Name: notebook-tracker\nVersion: 1.0\n")
    entry = "[finetune.trackers]\nnotebook = notebook_tracker:Notebook\n"
    (site / "notebook_tracker-1.0.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    yield lambda: [json.loads(line) for line in Path("notebook.jsonl").read_text().splitlines()]
    sys.modules.pop("notebook_tracker", None)


def test_a_run_that_goes_on_sends_what_its_files_hold_once_and_its_audit_holds(notebook, recipe):
    tracked = "train.trackers=[{name: notebook, project: flowers, report: true}]"
    finetune.run(recipe, "out", overrides=[tracked, "train.log_every_steps=2"])
    assert audit(Path("out")).holds
    finetune.run(recipe, "out", overrides=[tracked, "train.log_every_steps=2", "train.epochs=3"], resume=True)
    first, *noted = notebook()
    assert first == ["open", "out", "flowers", yaml.safe_load(Path("out/recipe.yaml").read_text())["seed"], None]
    [again] = [line for line in noted if line[0] == "open"]
    assert again[-1] == "notebook-1"
    for axis, file, before in (("epoch", "metrics.csv", ""), ("step", "steps.csv", "steps/")):
        rows = list(csv.DictReader(Path("out", file).read_text().splitlines()))
        expected = [
            [axis, int(row[axis]), {before + key: float(cell) for key, cell in row.items() if key != axis and cell}]
            for row in rows
        ]
        assert [line for line in noted if line[0] == axis] == expected
    ends = [line for line in noted if line[0] == "end"]
    assert [(state, page) for _, state, _, page in ends] == [("finished", "report.html")] * 2
    metrics = json.loads(Path("out/result.json").read_text())["metrics"]
    assert ends[-1][2] == {f"test/{name}": value for name, value in metrics.items()}
    assert check_hashes(Path("out")).holds


def test_nothing_is_noted_of_a_run_that_names_no_tracker(notebook, recipe):
    finetune.run(recipe, "out", overrides=["train.epochs=1"])
    assert not Path("notebook.jsonl").exists()
    assert not Path("out/trackers.json").exists()


def trackers(said, project=None, **options):
    made = Trackers({"notebook": project}, Path(), {"seed": 1}, report=said.append, **options)
    made.rows_of_epochs = lambda: [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    return made


def test_what_cannot_be_sent_is_told_once_and_sent_later(notebook):
    said = []
    with trackers(said) as made:
        Path("offline").touch()
        for _ in range(2):
            made._next = 0.0
            made.on_epoch_end(0)
        assert said[1:] == [
            "warning: notebook: ConnectionError: no network. Training goes on; it is tried again after a later epoch."
        ]
        Path("offline").unlink()
        made.end("finished", {"loss": 0.5}, Path("report.html"))
    assert notebook()[1:] == [
        ["epoch", 1, {"loss": 2.0}],
        ["epoch", 2, {"loss": 1.0}],
        ["end", "finished", {"test/loss": 0.5}, None],
    ]
    assert json.loads(Path("trackers.json").read_text()) == {"notebook": {"id": "notebook-1", "epochs": 2, "steps": 0}}


@pytest.mark.parametrize("content", ["[1]", '{"notebook": 3}', '{"notebook": {"id": "a", "epochs": -1, "steps": 0}}'])
def test_everything_is_sent_again_where_what_was_sent_is_not_known(notebook, content):
    Path("trackers.json").write_text(content)
    with trackers([]) as made:
        made.end("finished")
    assert [line[:2] for line in notebook()[1:]] == [["epoch", 1], ["epoch", 2], ["end", "finished"]]


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "stopped"), (TrainingError, "failed")])
def test_a_run_that_does_not_come_to_its_end_is_ended_as_such(notebook, error, state):
    with pytest.raises(error), trackers([]):
        raise error("now")
    assert notebook()[-1] == ["end", state, {}, None]


def test_a_tracker_draws_no_random_number_of_the_training(notebook):
    random.seed(3)
    before = random.getstate()
    with trackers([]) as made:
        made.on_epoch_end(0)
        made.end("finished")
    assert random.getstate() == before


def test_a_tracker_that_does_not_begin_ends_the_run_before_its_training(notebook):
    with pytest.raises(TrainingError) as caught:
        trackers([], project="closed")
    assert str(caught.value) == (
        "A tracker must be able to begin. `notebook` does not: ConnectionError: nobody answers. See what it needs, or "
        "remove it from `train.trackers`. Then `finetune resume` begins the run."
    )
