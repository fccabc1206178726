"""Mutation testing: which mutants are made, which tests they meet, and what is kept of the results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CODE = '''\
"""A docstring with 1 and True."""

LIMIT = 3


def limited(x: "int | None", low: int = 1) -> "int | None":
    """Returns 2 of 3."""
    if x is None or x < low:
        raise ValueError(f"too low: {x + 1}")
    return min(x, LIMIT)
'''


@pytest.fixture
def mutate(script):
    return script("mutate")


@pytest.fixture
def mutants(script):
    pytest.importorskip("cosmic_ray", reason="the extra `mutation` is not installed")
    return script("mutants")


# -- The mutants ------------------------------------------------------------------------------------------------------


def test_each_place_that_changes_behaviour_gives_a_mutant_and_texts_and_annotations_give_none(mutants):
    made, sites = mutants.sample(CODE, 100, seed=0)
    assert len(made) == sites
    assert [(mutant.line, mutant.operator) for mutant in made] == [
        (3, "NumberReplacer"),
        (6, "NumberReplacer"),
        (8, "AddNot"),
        (8, "ReplaceComparisonOperator_Is_IsNot"),
        (8, "ReplaceComparisonOperator_Lt_LtE"),
        (8, "ReplaceOrWithAnd"),
        (9, "DropStatement"),
        (10, "SwapCall"),
    ]
    swapped = made[-1]
    assert swapped.diff == "-    return min(x, LIMIT)\n+    return max(x, LIMIT)"
    assert swapped.code == CODE.replace("min(", "max(")


def test_a_sample_is_decided_by_its_seed(mutants):
    def keys(seed):
        return [mutant.key for mutant in mutants.sample(CODE, 4, seed)[0]]

    assert len(set(keys(0))) == 4
    assert keys(0) == keys(0)
    assert any(keys(0) != keys(seed) for seed in range(1, 5))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("self.x = 1 if f() else g", "pass"),
        ("f(a, b=c)", "f(a)"),
        ("x = [a, b]", "x = [ b,]"),
        ("x = {a: b, c: d}", "x = { c: d,}"),
        ("x = a in b", "x = a not in b"),
        ("x = a not in b", "x = a in b"),
        ("x = [a for a in b if a]", "x = [a for a in b if (not ( a))]"),
        ("try:\n    f\nexcept (re.error, b):\n    f", "try:\n    f\nexcept ():\n    f"),
    ],
)
def test_the_operators_that_cosmic_ray_lacks(mutants, before, after):
    assert after + "\n" in [mutant.code for mutant in mutants.sample(before + "\n", 100, seed=0)[0]]


def test_a_label_or_a_check_of_lengths_is_not_dropped(mutants):
    assert mutants.sample("tf.constant(a, name=b)\n", 9, seed=0)[1] == 1  # the whole statement
    assert mutants.sample("x = zip(a, b, strict=True)\n", 9, seed=0)[1] == 0


# -- The tests that a mutant meets ------------------------------------------------------------------------------------


class At:
    """A mutant by its lines."""

    def __init__(self, *lines, body=None):
        self.lines, self.body = lines, body


def test_a_mutant_meets_the_tests_that_reach_its_lines_fastest_first(mutate):
    contexts = {1: [""], 5: ["b", "a"], 6: ["c"], 7: ["fixture model"]}
    reach = mutate.Reach({"a": 3.0, "b": 1.0, "c": 2.0}, {"a": [], "b": ["model"], "c": []}, contexts, False)
    assert reach.tests_of(At(5, 6)) == ["b", "c", "a"]
    assert reach.tests_of(At(6, 6)) == ["c"]
    assert reach.tests_of(At(1, 1)) == ["b", "c", "a"]  # run while the module is imported
    assert reach.tests_of(At(7, 7)) == ["b"]  # run by a fixture that tests share
    assert reach.tests_of(At(1, 1, body=(6, 7))) == ["b", "c"]  # the default of an argument
    assert reach.tests_of(At(9, 9)) == []


def test_a_test_that_starts_a_process_is_met_by_every_mutant(mutate):
    seconds, contexts = {"a": 1.0, "process": 9.0}, {5: ["a"]}
    reach = mutate.Reach(seconds, {}, contexts, False, frozenset(["process"]))
    assert reach.tests_of(At(5, 5)) == ["a", "process"]
    assert reach.tests_of(At(6, 6)) == ["process"]


def test_a_folder_gives_its_modules_and_no_other_files(mutate):
    found = [str(path) for path in mutate.modules_of(Path("finetune/groups"))]
    assert "finetune/groups/rate_spacing.py" in found
    assert "finetune/groups/__init__.py" not in found
    assert mutate.modules_of(Path("finetune/errors.py")) == [Path("finetune/errors.py")]


# -- The results ------------------------------------------------------------------------------------------------------


def result(mutate, key, status, module="finetune/a.py"):
    return mutate.Result(module, key, "AddNot", 1, "", status, "", 0.1, "hash")


def written(path, results):
    path.write_text("".join(json.dumps(vars(one)) + "\n" for one in results))
    return path


def test_the_last_result_of_a_mutant_counts_and_those_of_older_code_go(mutate, tmp_path):
    last = result(mutate, "k", "killed")
    path = written(tmp_path / "a.jsonl", [result(mutate, "k", "survived"), result(mutate, "old", "killed"), last])
    mutate.keep_only(path, {"k"})
    assert mutate.read_file(path) == [last]
    assert mutate.read_file(tmp_path / "none.jsonl") == []


def test_the_table_counts_a_timeout_as_killed_and_an_uncovered_mutant_as_a_survivor(mutate, tmp_path):
    statuses = ["killed", "killed", "timeout", "survived", "uncovered"]
    written(tmp_path / "a.jsonl", [result(mutate, str(n), status) for n, status in enumerate(statuses)])
    written(tmp_path / "b.jsonl", [result(mutate, "x", "killed", "finetune/b.py")])
    assert mutate.table(mutate.read_results(tmp_path)).splitlines()[2:] == [
        "| finetune/a.py | 5 | 2 | 1 | 1 | 1 | 60 % |",
        "| finetune/b.py | 1 | 1 | 0 | 0 | 0 | 100 % |",
        "| all | 6 | 3 | 1 | 1 | 1 | 67 % |",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("mutants")
def test_a_run_judges_a_sample_and_the_next_run_tries_nothing_again(tmp_path):
    command = [sys.executable, str(SCRIPTS / "mutate.py"), "finetune/groups/rate_spacing.py", "--size", "3", "--fast"]
    first, second = (
        subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert "3 mutants, 3 to try" in first
    assert "| finetune/groups/rate_spacing.py | 3 | 3 | 0 | 0 | 0 | 100 % |" in first
    assert "3 mutants, 0 to try" in second
    lines = [json.loads(line) for line in (tmp_path / "finetune.groups.rate_spacing.jsonl").read_text().splitlines()]
    assert all(line["test"].startswith("tests/groups/test_rate_spacing.py::") for line in lines)
