"""The comparison of strategies: its statistics against known values, its choices, its file, and two real trainings."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def compare(script):
    return script("compare_strategies")


@pytest.fixture(scope="module")
def tables(script):
    return script("strategy_tables")


def cell(arm, seed, peak, validation, test, rows=20):
    return {"arm": arm, "rows": rows, "seed": seed, "peak": peak, "validation": validation, "test": test}


@pytest.fixture
def cells():
    """Two arms, two rates, four seeds: `discriminative` is 0.1 better, and its best peak on test rows is another."""
    found = []
    for seed in range(4):
        found += [cell("uniform", seed, 1e-3, 0.9, 0.80 + seed / 100), cell("uniform", seed, 1e-2, 0.8, 0.705)]
        found += [cell("discriminative", seed, 1e-3, 0.7, 0.99), cell("discriminative", seed, 1e-2, 0.9, 0.90)]
    return found


# -- Statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 2, 4, 7, 9, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_t_quantile_is_that_of_scipy(tables, degrees, level):
    assert tables.t_quantile(degrees, level) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-4)


def test_the_interval_is_that_of_scipy(tables):
    values = [0.91, 0.93, 0.95, 0.92, 0.97]
    mean, half = tables.interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], expected, rtol=1e-5)


def test_one_value_has_no_interval(tables):
    mean, half = tables.interval([0.5])
    assert mean == 0.5
    assert np.isnan(half)


def test_the_paired_test_counts_every_choice_of_signs(tables):
    # Sums of +-1 +-2 +-3 whose distance from 0 is at least |1 + 2 - 3| = 0: all. At least |1 + 2 + 3|: two of eight.
    assert tables.sign_flip_p([1, 2, -3]) == 1.0
    assert tables.sign_flip_p([1, 2, 3]) == 2 / 8
    assert tables.sign_flip_p([-1, 2, 3]) == 4 / 8  # +-(1 + 2 + 3) and +-(-1 + 2 + 3)


def test_the_paired_test_is_that_of_scipy(tables):
    differences = np.random.default_rng(0).normal(0.4, 1, 9)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="two-sided", n_resamples=1000
    )
    assert tables.sign_flip_p(differences) == pytest.approx(expected.pvalue)


def test_equal_pairs_are_no_evidence(tables):
    assert tables.sign_flip_p([0.0] * 5) == 1.0


def test_p_values_are_corrected_step_by_step(tables):
    assert tables.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert tables.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


# -- Choices and tables -----------------------------------------------------------------------------------------------


def test_the_peak_is_chosen_on_validation_rows_and_not_on_test_rows(tables, cells):
    found = tables.scores(cells, 20)
    assert found.peaks == {"uniform": [1e-3] * 4, "discriminative": [1e-2] * 4}
    np.testing.assert_allclose(found.tuned["discriminative"], 0.90)  # not the 0.99 that the test rows would choose
    np.testing.assert_allclose(found.tuned["uniform"], [0.80, 0.81, 0.82, 0.83])


def test_a_seed_that_is_not_complete_does_not_count(tables, cells):
    assert tables.scores(cells[:-1], 20).seeds == [0, 1, 2]


def test_without_a_complete_seed_there_is_no_table(tables, cells):
    with pytest.raises(
        SystemExit, match=r"Not one seed of 20 rows is complete\. Run with `--json FILE` until it ends\."
    ):
        tables.scores([cells[0], cells[3]], 20)


def test_differences_are_paired_by_seed(tables, cells):
    table = tables.tuned_table(tables.scores(cells, 20))
    half = stats.t.ppf(0.975, 3) * np.std([0.0, 0.01, 0.02, 0.03], ddof=1) / 2
    assert f"| discriminative | 0.900 ± 0.000 | +0.085 ± {half:.3f} | 0.125 | 0.125 | 0.01 (0.01 to 0.01) |" in table
    assert f"| uniform | 0.815 ± {half:.3f} |  |  |  | 0.001 (0.001 to 0.001) |" in table


def test_scores_are_also_reported_by_peak_rate_and_without_a_search(tables, cells):
    table = tables.grid_table(tables.scores(cells, 20))
    assert "| uniform | 0.815 | 0.705 | 1 of 2 | 0.760 ± " in table
    assert "| discriminative | 0.990 | 0.900 | 1 of 2 | 0.945 ± 0.000 | +0.185 ± " in table
    assert "| discriminative | +0.175 ± 0.021 | +0.195 ± 0.000 |" in tables.difference_table(tables.scores(cells, 20))


def test_the_tables_and_the_plot_are_made_again_without_training(compare, cells, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    compare.write(cells, tmp_path / "cells.json")
    assert json.loads((tmp_path / "cells.json").read_text()) == {"cells": cells}
    assert compare.main(["--from", str(tmp_path / "cells.json"), "--markdown", str(page)]) == 0
    told = page.read_text()
    assert told.startswith("before\n")
    assert told.endswith("after\n")
    assert "old" not in told
    assert "4 seeds and 2 peak rates with 20 rows" in told
    assert "| discriminative | 0.900 ± 0.000 |" in told
    assert (tmp_path / "images" / "strategies.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "images" / "strategies.svg").read_text()
    assert "| discriminative | 0.900 ± 0.000 |" in capsys.readouterr().out


# -- Training ---------------------------------------------------------------------------------------------------------


def test_the_strategies_are_those_of_recipes_and_last_equally_long(compare):
    for rows, epochs in compare.EPOCHS.items():
        for name, arm in compare.ARMS.items():
            if arm.phases:
                assert sum(phase.epochs for phase in arm.phases(1e-3, epochs)) == epochs, (name, rows)
    phases = compare.ARMS["all three"].phases(1e-2, 12)
    assert [tuple(phase.train) for phase in phases] == [tuple([*compare.GROUPS][start:]) for start in (3, 2, 1, 0)]
    assert max(float(phases[-1].rates["stem"](step)) for step in range(45)) == pytest.approx(1e-2 / 2.6**3)
    assert not any(phase.sets_rates for phase in compare.ARMS["gradual unfreezing"].phases(1e-2, 12))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head only", pytest.param("gradual unfreezing", marks=pytest.mark.grid)])
def test_a_cell_depends_on_nothing_that_was_trained_before(compare, monkeypatch, name):
    monkeypatch.setattr(compare, "EPOCHS", {20: 4})
    runner, first = compare.Runner(), None
    for key in [(name, 20, 0, 1e-2), (name, 20, 1, 1e-1), (name, 20, 0, 1e-2)]:
        found = runner.cell(*key)
        first = first or found
    assert found == first
    assert 0.1 < found["test"] <= 1


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(compare, monkeypatch):
    monkeypatch.setattr(compare, "EPOCHS", {20: 1})
    known = cell("head only", 0, 1e-2, 0.123, 0.456)
    cells, saved = [known], []
    wanted = [("head only", 20, 0, 1e-2), ("head only", 20, 0, 1e-3)]
    compare.train(wanted, cells, lambda: saved.append(len(cells)))
    assert cells[0] is known
    assert [compare.key_of(one) for one in cells] == wanted
    assert saved[-1] == 2
