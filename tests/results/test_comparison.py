"""Runs beside each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from finetune.results.comparison import mcnemar, pairs_of, recipe_differences, seed_groups
from finetune.results.report.run_files import RunFiles

EMPTY = RunFiles(Path("a"), "seed: 1\n", {}, {}, {}, {}, {}, {}, {}, (), ())


def run(name, recipe="seed: 1\n", loss=1.0, **report):
    return replace(EMPTY, folder=Path(name), recipe=recipe, result={"metrics": {"loss": loss}}, report=report)


def predicted(folder, scores, *, targets, kind="classes", rows="same", **more):
    folder.mkdir()
    np.savez(
        folder / "predictions.npz",
        rows=np.arange(len(targets)),
        targets=targets,
        scores=scores,
        kind=np.array(kind),
        **more,
    )
    return run(folder, test_rows=rows)


@pytest.mark.parametrize(("gained", "lost"), [(8, 1), (0, 5), (20, 21), (300, 200), (4, 4)])
def test_mcnemars_test_is_the_binomial_test_of_scipy(gained, lost):
    assert mcnemar(gained, lost) == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)


def test_recipes_differ_in_the_keys_that_differ_and_groups_are_known_by_their_names():
    first = "seed: 1\ngroups: [{name: head, learning_rate: 0.1}]\ntrain: {epochs: 2}\n"
    second = "seed: 2\ngroups: [{name: stem, frozen: true}, {name: head, learning_rate: 0.2}]\ntrain: {epochs: 2}\n"
    assert recipe_differences([run("a", first), run("b", second)]) == {
        "seed": ["1", "2"],
        "groups.head.learning_rate": ["0.1", "0.2"],
        "groups.stem.name": ["", "stem"],
        "groups.stem.frozen": ["", "true"],
    }


def test_seeds_are_averaged_with_the_interval_of_students_t():
    losses = [1.0, 1.5, 0.7, 1.1]
    runs = [run(str(n), f"seed: {n}\ntrain: 1\n", loss) for n, loss in enumerate(losses)]
    [group] = seed_groups([*runs, run("x", "seed: 1\ntrain: 2\n")])
    interval = scipy.stats.t.interval(0.95, 3, loc=np.mean(losses), scale=scipy.stats.sem(losses))
    assert group.metrics["loss"] == pytest.approx((np.mean(losses), *interval), rel=1e-3)
    assert len(group.folders) == 4
    assert seed_groups([runs[0], replace(runs[0], folder=Path("copy"))]) == []


def test_a_pair_on_the_same_rows_has_its_difference_with_an_interval_and_a_test(tmp_path):
    targets = np.zeros(200, int)
    right = np.arange(200)[:, None] < np.array([[150, 170]])
    scores = [np.where(right[:, [n]], [[1.0, 0.0]], [[0.0, 1.0]]) for n in (0, 1)]
    runs = [predicted(tmp_path / str(n), scores[n], targets=targets) for n in (0, 1)]
    [pair] = pairs_of([*runs, predicted(tmp_path / "other", scores[0], targets=targets, rows="others")])
    assert (pair.measure, pair.values, pair.difference) == (
        "share of rows that are right",
        (0.75, 0.85),
        pytest.approx(0.1),
    )
    error = 1.96 * (0.1 * 0.9 / 200) ** 0.5
    assert pair.interval == (pytest.approx(0.1 - error, abs=0.012), pytest.approx(0.1 + error, abs=0.012))
    assert pair.p_value == pytest.approx(2 * 0.5**20)


def test_numbers_are_paired_by_their_absolute_errors_and_labels_by_whole_rows(tmp_path):
    targets = np.array([[1.0], [2.0]])
    pair = next(
        pairs_of(
            [predicted(tmp_path / n, targets + e, targets=targets, kind="numbers") for n, e in (("a", 0.5), ("b", 0.1))]
        )
    )
    assert (pair.measure, pair.difference, pair.p_value) == ("mean absolute error", pytest.approx(-0.4), None)
    labels = np.array([[True, False], [True, True]])
    made = [
        predicted(tmp_path / n, s, targets=labels, kind="labels", threshold=np.array(0.5))
        for n, s in (("c", labels * 1.0), ("d", labels * 0.0))
    ]
    assert next(pairs_of(made)).values == (1.0, 0.0)


def test_runs_without_predictions_or_with_other_targets_are_no_pair(tmp_path):
    first = predicted(tmp_path / "a", np.eye(2), targets=np.array([0, 1]))
    second = predicted(tmp_path / "b", np.eye(2), targets=np.array([1, 1]))
    assert list(pairs_of([first, second, run(tmp_path / "none", test_rows="same")])) == []
