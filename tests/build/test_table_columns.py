"""Columns that a recipe names and its tables do not have."""

import subprocess
import sys

import pytest

from finetune.build.table_columns import unknown_columns
from finetune.commands.check import check
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def people(recipe):
    (recipe.parent / "people.csv").write_text("age,town,kind\n1,A,x\n2,B,y\n")
    return recipe


def problems(recipe, *keys):
    overrides = ["data={table: people.csv, inputs: age, target: kind}", *[f"data.{key}" for key in keys]]
    return list(unknown_columns(load_recipe(recipe, overrides=overrides)))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("inputs=[age, twon]", "`data.inputs`"),
        ("inputs={x: age, z: [twon]}", "`data.inputs.z`"),
        ("target={a: kind, b: twon}", "`data.target.b`"),
        ("types={twon: category}", "`data.types.twon`"),
        ("sample_weight=twon", "`data.sample_weight`"),
        ("split={column: twon}", "`data.split.column`"),
    ],
)
def test_each_key_that_names_columns_is_checked(people, key, said):
    [problem] = problems(people, key)
    assert said in problem
    assert "has no column `twon`. Its columns are `age`, `town`, `kind`. Did you mean `town`?" in problem


def test_columns_that_are_there_and_tables_that_are_not_are_no_problem(people):
    assert problems(people, "inputs=[age, town]", "types={town: category}") == []
    assert problems(people, "table=none.csv") == []


def test_the_test_table_has_the_same_columns(people):
    (people.parent / "test.csv").write_text("age,species\n1,x\n")
    [problem] = problems(people, "test_table=test.csv")
    assert "test.csv` has no column `kind`" in problem


def test_many_columns_are_told_in_one_message(people):
    [problem] = problems(people, "inputs=[a, b, c, d, e, f]")
    assert "has no column `a`, `b`, `c`, `d`, `e` and 1 more. Its columns are" in problem


@pytest.mark.parametrize("content", ["age;town;kind\n1;A\n", "1,A,x\n2,B,y\n"])
def test_a_table_with_another_separator_or_without_names_is_a_single_fault(people, content):
    (people.parent / "people.csv").write_text(content)
    [problem] = problems(people, "inputs=[age, town]")
    assert "`data.table`: " in problem


def test_the_place_in_the_recipe_is_told_without_tensorflow(people):
    text = people.read_text().splitlines()
    start = next(number for number, line in enumerate(text) if line.startswith("data:"))
    text[start] = "data: {table: people.csv, inputs: [age, twon], target: kind}"
    people.write_text("\n".join(text))
    with pytest.raises(RecipeError) as caught:
        check(people)
    assert f"{people.name}:{start + 1}:41: `data.inputs`: `" in str(caught.value)
    code = "import sys, finetune.build.table_columns; assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_columns_are_split_as_the_recipe_says(people):
    (people.parent / "people.csv").write_text("age;town;kind\n1;A, B;x\n")
    assert problems(people) == []
    [problem] = problems(people, "delimiter=tab")
    assert "seems to have a semicolon between its values" in problem


def test_of_several_files_the_first_shows_the_columns_and_a_pattern_without_files_is_told(people):
    for number in range(2):
        (people.parent / f"part-{number}.csv").write_text("age,kind\n1,x\n")
    assert problems(people, "table=part-*.csv") == []
    [problem] = problems(people, "table=[part-1.csv, part-0.csv]", "inputs=agee")
    assert "part-1.csv` has no column `agee`" in problem
    [problem] = problems(people, "table=parts-*.csv")
    assert "`data.table`: There must be tables. `" in problem
    assert "parts-*.csv` matches none." in problem
    assert problems(people, "table=[part-0.csv, none.csv]") == []  # which `missing_files` tells
