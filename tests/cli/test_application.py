import subprocess
import sys

import pytest
import typer

from finetune.cli import app
from finetune.cli.application import naming_options
from finetune.errors import GroupError, RecipeError, TrainingError


@pytest.mark.parametrize("arguments", [["check", "tiny.yaml"], ["run", "--help"]])
def test_check_and_help_load_neither_tensorflow_nor_keras_nor_numpy(without_tensorflow, environment, recipe, arguments):
    command = [sys.executable, "-c", without_tensorflow, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chek", "a.yaml"], "No such command 'chek'"),
        (["check"], "Missing argument"),
        (["check", "a.yaml", "--sett", "x=1"], "No such option: --sett"),
        (["run", "a.yaml", "--out"], "requires an argument"),
        (["check", "a.yaml", "b.yaml"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_exits_2_with_the_usage(refused, arguments, told):
    message = refused(*arguments)
    assert told in message
    assert len(message) < 400


def test_without_a_command_the_help_is_shown(finetune):
    done = finetune()
    assert done.returncode == 2
    assert "finetune check recipe.yaml" in done.stdout + done.stderr


def test_the_help_names_every_command_and_the_version_is_the_packages(finetune):
    shown = finetune("--help").stdout
    assert all(f"  {command} " in shown for command in ("run", "plan", "check"))
    assert finetune("--version").stdout == "finetune 0.1.0\n"


def test_the_exit_codes_are_in_the_help(finetune):
    said = " ".join(finetune("--help").stdout.split())
    assert "Exit codes: 0; 2 for bad input" in said
    assert "130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            GroupError("At least 2 `steps`. Received steps=1, `number`."),
            "At least 2 `--steps`. Received --steps 1, `number`.",
        ),
        (GroupError("`num_batches` is 1 or more."), "`--batches` is 1 or more."),
        (RecipeError("r.yaml:1:1: `steps` is wrong."), "r.yaml:1:1: `steps` is wrong."),
        (TrainingError("After 3 `steps`."), "After 3 `steps`."),
    ],
)
def test_a_refusal_names_the_option_that_was_typed(error, said):
    with pytest.raises(type(error)) as caught, naming_options(steps="steps", num_batches="batches"):
        raise error
    assert str(caught.value) == said


def test_every_command_has_a_short_help_that_is_whole_and_examples_at_80_columns():
    group = typer.main.get_command(app)
    listing = group.get_help(typer.Context(group, info_name="finetune", terminal_width=80, max_content_width=80))
    assert [line for line in listing.splitlines()[1:] if line.endswith("...") or len(line) > 80] == []
    for name, command in group.commands.items():
        text = command.get_help(typer.Context(command, info_name=f"finetune {name}", terminal_width=80))
        assert f"Examples:\n    finetune {name}" in text
        assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_shell_completes_commands_and_the_keys_that_set_takes(finetune, environment):
    environment |= {"_FINETUNE_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
    environment["COMP_WORDS"] = "finetune run recipe.yaml --set train.ep"
    assert finetune().stdout.split() == ["train.epochs="]
    environment |= {"COMP_WORDS": "finetune sch", "COMP_CWORD": "1"}
    assert finetune().stdout.split() == ["schema"]
