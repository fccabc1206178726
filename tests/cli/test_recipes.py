import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_good_recipe_is_well_written_and_the_next_command_is_named(finetune, recipe):
    done = finetune("check", recipe)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tiny.yaml: valid. See what it does with `finetune plan tiny.yaml`.\n"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_well_written(finetune, path):
    done = finetune("check", path, "--allow-code", "hub:basic_pitch")
    # What `finetune fetch` brings is not in the repository; everything else is checked.
    faults = [line for line in done.stderr.splitlines() if "`finetune fetch " not in line]
    assert (done.returncode == 0 or "`finetune fetch " in done.stderr, faults) == (True, [])


def test_all_problems_are_reported_at_once_with_file_line_and_column(refused, recipe):
    text = recipe.read_text()
    for old, new in [("seed: 3", "seed: -3"), ("momentum: 0.9}", "learning_rate: 1}"), ("epochs: 2", "epoch: 2")]:
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    lines = refused("check", recipe).splitlines()
    assert lines[0] == "error: tiny.yaml:1:7: `seed` must be 0 or more. Received: `-3`."
    assert lines[1].startswith("tiny.yaml:8:")
    assert lines[2:] == [
        "tiny.yaml:11:1: `train.epochs` is missing. Add it under `train`.",
        "tiny.yaml:11:9: `train.epoch` is not a known key. Did you mean `epochs`?",
    ]


def test_an_override_is_applied_and_one_that_is_wrong_is_named(finetune, refused, recipe):
    assert (
        finetune("check", recipe, "--set", "train.epochs=5", "--set", "groups.head.learning_rate=1e-3").returncode == 0
    )
    message = refused("check", recipe, "--set", "train.epochs=many", "--set", "groups.hed.learning_rate=1")
    assert "--set train.epochs: `train.epochs` must be a whole number." in message
    assert "Did you mean `head`?" in message


def test_code_of_others_needs_to_be_allowed_by_name(finetune, refused, recipe):
    override = ["--set", "model={builder: my_package.models:build}"]
    message = refused("check", recipe, *override)
    assert "`model.builder: my_package.models:build` names code that is not part of finetune" in message
    assert "--allow-code my_package" in message
    assert "no module `my_package` to import" in refused("check", recipe, *override, "--allow-code", "my_package")
    assert "--allow-code my_package" in refused("check", recipe, *override, "--allow-code", "my_pack")
    Path("my_package").mkdir()
    Path("my_package", "__init__.py").touch()
    Path("my_package", "models.py").write_text("def build(): ...")
    assert finetune("check", recipe, *override, "--allow-code", "my_package").returncode == 0


def test_a_missing_recipe_is_reported_with_the_nearest_name(refused, recipe):
    assert refused("check", "tny.yaml") == "error: The recipe `tny.yaml` does not exist. Did you mean `tiny.yaml`?\n"


@pytest.mark.slow
def test_a_plan_as_json_is_alone_on_stdout_and_nothing_is_on_stderr(finetune, recipe):
    done = finetune("plan", recipe, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["groups"] == ["stem", "body", "head"]
    body = next(weight for weight in plan["weights"] if weight["name"] == "body/kernel")
    assert body["learning_rate"] == pytest.approx([1e-2, 1e-2, 5e-3])


@pytest.mark.slow
def test_a_strategy_is_printed_as_a_list_below_the_plan_where_it_is_short_and_alone_with_phases(finetune, recipe):
    strategy = ["--set", "phases={strategy: gradual_unfreezing, epochs_per_group: 1}"]
    below = finetune("plan", recipe, *strategy).stdout
    alone = CliRunner().invoke(app, ["plan", str(recipe), *strategy, "--phases"]).stdout
    assert alone.startswith("phases:\n  - train: [head]\n")
    assert below.endswith(f"\n# The strategy as a list, to paste into the recipe and edit:\n{alone}")
    refused = CliRunner().invoke(app, ["plan", str(recipe), "--phases"])
    assert refused.exception.exit_code == 2
    assert "none. Name one, as in `--set phases=gradual_unfreezing`" in str(refused.exception)


def test_a_plan_shows_groups_and_with_weights_every_weight(finetune, recipe):
    groups = finetune("plan", recipe)
    assert (groups.returncode, groups.stderr) == (0, "")
    assert "stem, bn" in groups.stdout
    assert "body/kernel" not in groups.stdout
    weights = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["plan", str(recipe), "--weights"]).stdout
    assert "bn/moving_variance" in weights
    assert "0.01, 0.01, 0.005" in weights


def test_schema_fill_and_recipes_answer_without_tensorflow(without_tensorflow, environment, recipe):
    for arguments in (["schema"], ["fill", recipe], ["recipes"], ["recipes", "wine", "--out", "tried"]):
        command = [sys.executable, "-c", without_tensorflow, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        shown = {"schema": '"$schema"', "fill": "# by default:", "recipes": "wine"}[arguments[0]]
        assert shown in done.stdout
    assert done.stdout == "written: tried/wine.yaml. Run it with `finetune run tried/wine.yaml`.\n"
    assert Path("tried/tables/wine.csv").is_file()


def test_schema_and_fill_write_files_and_name_what_comes_next(finetune, refused, recipe):
    done = finetune("schema", "--out", "deep/schema.json")
    assert done.stdout == (
        "written: deep/schema.json. Begin a recipe beside it with: # yaml-language-server: $schema=schema.json\n"
    )
    assert "An existing file is not overwritten" in refused("schema", "--out", "deep/schema.json")
    done = finetune("fill", recipe, "--out", "deep/filled.yaml")
    assert (done.stdout, done.stderr) == ("written: deep/filled.yaml\n", "")
    assert finetune("check", "deep/filled.yaml").returncode == 0
    assert "`--json` prints the list of all recipes" in refused("recipes", "wine", "--json")


def test_new_asks_nobody_where_there_is_no_terminal_and_writes_a_recipe_that_check_accepts(
    finetune, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{number},{number / 7},{'ab'[number % 2]}" for number in range(40))
    Path("rows.csv").write_text(f"id,size,kind\n{rows}\n")
    done = finetune("new", "--data", "rows.csv", "--out", "mine.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "predicted: `kind`, a class, from all other columns, without `id`\n" in done.stdout
    assert done.stdout.endswith("train it\n")
    assert finetune("check", "mine.yaml").returncode == 0
    assert "Did you mean `rows.csv`?" in refused("new", "--data", "row.csv", "--out", "other.yaml")


def test_new_asks_on_a_terminal_and_again_where_an_answer_is_not_offered(environment, tmp_path):
    import pty

    rows = "\n".join(f"{number / 7},{number / 3},{number % 4}" for number in range(40))
    (tmp_path / "rows.csv").write_text(f"a,b,c\n{rows}\n")
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "finetune", "new"]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, cwd=tmp_path)
    os.close(side)
    shown = ""
    for answer, question in (
        ("rows.csv", "Where are the data"),
        ("d", "to be predicted"),
        ("b", "none of"),
        ("", "network"),
    ):
        while question not in shown:
            shown += os.read(terminal, 1000).decode()
        shown = shown.rpartition(question)[2]
        os.write(terminal, f"{answer}\n".encode())
    assert process.wait(timeout=60) == 0
    os.close(terminal)
    assert "target: b " in (tmp_path / "recipe.yaml").read_text()


def test_what_a_program_may_read_is_json(finetune, recipe):
    assert json.loads(finetune("check", recipe, "--json").stdout) == {"valid": True, "problems": [], "notes": []}
    done = finetune("check", recipe, "--json", "--set", "train.epochs=no", "--set", "seed=-1")
    assert (done.returncode, done.stderr) == (2, "")
    problems = json.loads(done.stdout)["problems"]
    assert problems[0] == {"place": None, "message": "--set seed: `seed` must be 0 or more. Received: `-1`."}
    assert len(problems) == 2
    recipe.write_text(recipe.read_text().replace("epochs: 2", "epoch: 2"))
    problem = json.loads(finetune("check", recipe, "--json").stdout)["problems"][-1]
    assert problem["place"] == {"file": "tiny.yaml", "line": 11, "column": 9}
    assert problem["message"] == "`train.epoch` is not a known key. Did you mean `epochs`?"
    keys = json.loads(finetune("keys", "data.split", "--json").stdout)
    assert (keys[0]["path"], keys[0]["keys"][0]["name"]) == ("data.split", "test")
    assert "digits" in [recipe["name"] for recipe in json.loads(finetune("recipes", "--json").stdout)]


def test_data_prints_json_alone_on_standard_output(finetune, recipe):
    done = finetune("data", recipe, "--json")
    assert json.loads(done.stdout)["rows"]
    assert "data: " in done.stderr
