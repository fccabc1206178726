"""The rates of a recipe are found wherever they stand, scaled together, and written without touching a comment."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.rate_edits import check_text, peak_of, scaled, scaled_text, tidy

HEAD = """\
model: {keras_file: a.keras}
data: {npz: b.npz}
train: {epochs: 1, loss: mse}
"""
GROUPS = """\
# why
groups:
  - {name: stem, prefixes: [a], frozen: true}
  - name: body       # the body
    prefixes: [b]
    optimizer: sgd
    learning_rate: 1e-3   # small
  - {name: head, rest: true, optimizer: adam, learning_rate: {schedule: cosine_decay, initial: 5.0e-1, decay_steps: 9}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(groups: str, name: str = "r.yaml") -> Path:
        Path(name).write_text(HEAD + groups, encoding="utf-8")
        return Path(name)

    return write


def one_group(learning_rate: str) -> str:
    return f"groups:\n  - {{name: all, rest: true, optimizer: sgd, learning_rate: {learning_rate}}}\n"


SCHEDULES = [
    ("0.25", 0.25, "0.75"),
    ("{schedule: one_cycle, peak: 0.25}", 0.25, "{schedule: one_cycle, peak: 0.75}"),
    (
        "{schedule: piecewise_constant_decay, boundaries: [5], values: [0.25, 0.5]}",
        0.5,
        "{schedule: piecewise_constant_decay, boundaries: [5], values: [0.75, 1.5]}",
    ),
    (
        "{schedule: polynomial_decay, initial: 0.25, decay_steps: 3, end: 0.125}",
        0.25,
        "{schedule: polynomial_decay, initial: 0.75, decay_steps: 3, end: 0.375}",
    ),
    (
        "{schedule: chain, boundaries: [5], schedules: [{schedule: constant, initial: 0.25},"
        " {schedule: exponential_decay, initial: 0.5, decay_steps: 3, decay_rate: 0.125}]}",
        0.5,
        "{schedule: chain, boundaries: [5], schedules: [{schedule: constant, initial: 0.75},"
        " {schedule: exponential_decay, initial: 1.5, decay_steps: 3, decay_rate: 0.125}]}",
    ),
]


@pytest.mark.parametrize(("before", "peak", "after"), SCHEDULES)
def test_every_rate_of_a_schedule_is_scaled_and_nothing_else(write, before, peak, after):
    path = write(one_group(before))
    recipe = load_recipe(path)
    assert peak_of(recipe.groups[0].learning_rate) == peak
    text, changed = scaled_text(recipe, path, {"all": 3.0})
    assert text == HEAD + one_group(after)
    assert all(new == tidy(3 * old) for old, new in changed.values())
    expected = scaled(recipe, {"all": 3.0})
    check_text(text, path, expected)
    assert expected == load_recipe(write(one_group(after)))


def test_comments_and_the_rest_of_the_line_stay_and_only_the_groups_asked_for_change(write):
    path = write(GROUPS)
    text, changed = scaled_text(load_recipe(path), path, {"head": 0.01, "body": 0.5})
    assert text == HEAD + GROUPS.replace("1e-3   #", "5.0e-4   #").replace("5.0e-1", "5.0e-3")
    assert changed == {"r.yaml:10:20": (1e-3, 5e-4), "r.yaml:11:96": (0.5, 5e-3)}
    text, _ = scaled_text(load_recipe(path), path, {"body": 0.5})
    assert text == HEAD + GROUPS.replace("1e-3   #", "5.0e-4   #")


def test_a_strategy_is_scaled_as_a_whole(write):
    path = write("groups: {by: layer, spread: [1e-4, 1e-2], optimizer: adam}\n")
    text, _ = scaled_text(load_recipe(path), path, {"a": 10.0, "b": 10.0})
    assert "spread: [1.0e-3, 0.1]" in text
    path = write("groups: {by: layer, peak: 1e-2, decay: 2.6, optimizer: adam}\n")
    assert scaled(load_recipe(path), {"a": 10.0}).groups.peak == 0.1
    with pytest.raises(
        RecipeError,
        match=r"the ratios between the rates are fixed\. The groups would need different factors: `10`, `5`",
    ):
        scaled(load_recipe(path), {"a": 10.0, "b": 5.0})


def test_a_scaled_recipe_still_knows_where_it_was_written(write):
    recipe = scaled(load_recipe(write(GROUPS)), {"body": 2.0})
    assert recipe.groups[1].learning_rate == 2e-3
    assert str(recipe.model.keras_file.folder) == str(Path.cwd())
    assert scaled(recipe, {"body": 2.0}).groups[1].learning_rate == 4e-3


@pytest.mark.parametrize(
    ("groups", "factors", "overrides", "message"),
    [
        (
            one_group("0.1"),
            {"all": 2.0},
            ["groups.all.learning_rate=0.3"],
            r"comes from `--set groups\.all\.learning_rate`",
        ),
        (one_group("&rate 0.1"), {"all": 2.0}, [], r"r\.yaml:5:60: a rate is changed only where it is a plain"),
        (
            one_group("{schedule: polynomial_decay, initial: 0.1, decay_steps: 4}"),
            {"all": 2.0},
            [],
            r"`groups\.all\.learning_rate\.end` has its default value\. Write it into `r\.yaml`",
        ),
        (
            "groups:\n  - &one {name: a, prefixes: [a], optimizer: sgd, learning_rate: 0.1}\n"
            "  - {<<: *one, name: b, prefixes: [b]}\n",
            {"a": 2.0, "b": 3.0},
            [],
            r"several groups share this rate, and they need different ones: 0\.2 and 0\.3",
        ),
    ],
)
def test_a_rate_that_cannot_be_written_safely_is_reported(write, groups, factors, overrides, message):
    path = write(groups)
    with pytest.raises(RecipeError, match=message):
        scaled_text(load_recipe(path, overrides=overrides), path, factors)


def test_a_rate_of_another_file_is_not_written(write):
    write(GROUPS, "base.yaml")
    path = Path("top.yaml")
    path.write_text("extends: base.yaml\n")
    with pytest.raises(RecipeError, match=r"comes from `base\.yaml:10:20`, and only `top\.yaml` itself is changed"):
        scaled_text(load_recipe(path), path, {"body": 2.0})


def test_a_text_that_reads_otherwise_is_refused_and_nothing_is_left(write):
    path = write(GROUPS)
    recipe = load_recipe(path)
    with pytest.raises(RecipeError, match=r"`r\.yaml` cannot be changed safely"):
        check_text(path.read_text(), path, scaled(recipe, {"body": 2.0}))
    assert [file.name for file in Path().iterdir()] == ["r.yaml"]
