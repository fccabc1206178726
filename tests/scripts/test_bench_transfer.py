"""The comparison on transfer tasks: what is chosen and told, its file, and a real training."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench(script):
    return script("bench_transfer")


@pytest.fixture(scope="module")
def tables(script):
    return script("transfer_tables")


def cell(arm, seed, validation, test, task="digits", peaks=(1e-3, 1e-2), seconds=1.0):
    key = {"task": task, "rows": 20, "arm": arm, "seed": seed, "peaks": list(peaks)}
    return key | {
        "validation": validation,
        "few": [0.2, 0.1][: len(test)],
        "test": test,
        "seconds": [seconds] * len(test),
    }


@pytest.fixture
def cells():
    """Two tasks: on `digits` the head alone is best where it is tuned, on `topics` the uniform rate."""
    found = []
    for seed in range(4):
        found += [cell("uniform", seed, [0.9, 0.8], [0.80 + seed / 100, 0.99])]
        found += [cell("head only", seed, [0.7, 0.95], [0.99, 0.90])]
        found += [cell("ours", seed, [0.5], [0.895], peaks=[None])]  # an arm without a search
        found += [cell("uniform", seed, [0.5, 0.6], [0.5, 0.7], task="topics")]
        found += [cell("head only", seed, [0.5, 0.4], [0.6, 0.8], task="topics")]
        found += [cell("ours", seed, [0.5], [0.65], task="topics", peaks=[None])]
    return found


def test_the_rate_is_chosen_on_validation_rows_and_not_on_test_rows(tables, cells):
    digits, topics = tables.scores(cells)
    np.testing.assert_allclose(digits.tuned("uniform"), [0.80, 0.81, 0.82, 0.83])  # not 0.99
    np.testing.assert_allclose(digits.tuned("head only"), 0.90)
    assert (digits.best, topics.best) == ("head only", "uniform")
    np.testing.assert_allclose(topics.best_by_validation(), 0.7)  # 0.6 is the best on validation rows


def test_a_seed_counts_where_every_way_was_trained(tables, cells):
    digits, topics = tables.scores([each for each in cells if each is not cells[-1]])
    assert (digits.seeds, topics.seeds) == ((0, 1, 2, 3), (0, 1, 2))
    with pytest.raises(SystemExit, match=r"Not one seed of a task is complete\. Go on with `--results"):
        tables.scores([cells[0], cell("head only", 1, [1, 1], [1, 1])])


def test_the_default_is_told_beside_the_best_tuned_way_and_what_it_costs(tables, cells):
    table = tables.default_table(tables.scores(cells), "ours")
    assert "| digits, 20 | 0.895 ± 0.000 | head only: 0.900 ± 0.000 | -0.005 ± 0.000 | 0.125 | 0.900" in table
    assert "| topics, 20 | 0.650 ± 0.000 | uniform: 0.700 ± 0.000 | -0.050 ± 0.000 | 0.125 | 0.700" in table
    assert table.count("| 1/4 |") == 2  # one training of a second, against two ways at two rates
    assert tables.cost_text(tables.scores(cells), "ours") == "2 s against 8 s for the whole grid, 1/4 of it"


def test_ways_are_compared_over_tasks(tables, cells):
    table = tables.arm_table(tables.scores(cells))
    # On digits 0.815 and 0.900, on topics 0.700 and 0.600: 0.7575 and 0.7500 on the mean.
    assert re.search(r"\| uniform \| 0\.75[78] \|  \|  \| 1 of 2 \| 0\.04[23] \| 0\.085 \|", table)
    assert "| head only | 0.750 | -0.008 ± " in table
    assert re.search(r"\| ours \| 0\.77[23] \| \+0\.01[45] ± .* \| 1 of 2 \| 0\.02[78] \| 0\.050 \|", table)


def test_the_tables_and_the_plot_are_made_again_without_training(bench, cells, tmp_path, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.jsonl"
    page.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    results.write_text("".join(json.dumps(each) + "\n" for each in cells) + '{"task": "digi')  # killed while writing
    assert bench.main(["--from", str(results), "--markdown", str(page)]) == 0
    assert page.read_text().startswith("before\n<!-- figures -->\n\n2 tasks and sizes, 4 seeds each.")
    assert "old" not in page.read_text()
    assert (tmp_path / "images" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    assert "| digits, 20 | 0.990 ± 0.000 | head only: 0.900 ± 0.000 |" in capsys.readouterr().out


def test_without_a_file_nothing_begins(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main([])
    assert "name the file of results: `--results FILE` trains" in capsys.readouterr().err


def test_a_search_goes_by_the_loss_of_few_validation_rows_and_costs_all_that_it_trains(tables, cells):
    (searched,) = [each for each in tables.with_search(cells[:3]) if each["arm"] == tables.SEARCH]
    assert (searched["peaks"], searched["few"], searched["test"]) == ([None], [0.1], [0.99])  # not the best accuracy
    assert searched["seconds"] == [3.0]  # of two rates, and of the run


@pytest.mark.parametrize("arm", ["uniform", "decay 0.8", "head only", "gradual unfreezing", "LP-FT", "fine_tune"])
def test_every_way_has_the_same_length_and_a_rate_for_every_trained_group(bench, arm):
    task = bench.TASKS["even or odd"]
    groups = bench.trainer_of(task).groups
    setting = bench.Setting(groups, 1e-2, lambda: None, epochs=8, steps_per_epoch=12)
    phases = bench.ARMS[arm].phases(setting)
    assert sum(phase.epochs for phase in phases) == 8
    for phase in phases:
        assert set(phase.rates) == set(phase.names(groups))


@pytest.mark.grid
def test_a_comparison_goes_on_where_it_was_stopped_and_its_cells_do_not_depend_on_that(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "EPOCHS", (2, 2))
    results, arms = tmp_path / "results.jsonl", ["uniform", "head only", "Auto-RGN"]

    def train(arms):
        bench.train(bench.keys([0], ["even or odd"], [*arms, "measured rate"], [0]), results)
        return {each["arm"]: each for each in bench.read(results)}

    first = train(arms[:1])
    results.write_text(json.dumps(first["uniform"]) + "\n" + '{"task"')  # killed while it wrote the second cell
    cells = train(arms)
    assert [*cells] == [*arms, "measured rate"]
    assert cells["uniform"] == first["uniform"]  # it was not trained again
    assert cells["measured rate"]["test"] == first["measured rate"]["test"]
    assert max(cells["uniform"]["test"]) > 0.2  # of ten classes
