import subprocess
import sys

import pytest
from rich.console import Console

from finetune.commands.keys import keys_as_data, show_keys


def shown(capsys, name, as_markdown=False):
    show_keys(name, as_markdown=as_markdown, console=Console(width=160, highlight=False, markup=False))
    return capsys.readouterr().out


def test_the_keys_of_a_part_are_printed_with_values_defaults_and_meanings(capsys):
    line = next(line for line in shown(capsys, "train").splitlines() if line.strip().startswith("cache_passes"))
    assert line.split()[:6] == ["cache_passes", "whole", "number", ">=", "1", "1"]


def test_without_a_name_the_first_keys_and_all_parts_are_listed(capsys):
    text = shown(capsys, "")
    assert "restore" in text
    assert "phases (gradual_unfreezing)" in text


def test_markdown_is_that_of_the_documentation(capsys):
    assert shown(capsys, "model.head", as_markdown=True).startswith("## `model.head`\n\nA standard head")


@pytest.mark.slow
def test_the_command_does_not_load_tensorflow():
    code = "import sys; from finetune.cli import app; app(['keys', 'train'], standalone_mode=False); print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_keys_as_data_are_those_that_are_shown(capsys):
    [block] = keys_as_data("data.split")
    assert block["path"] == "data.split"
    assert [key["name"] for key in block["keys"]] == ["test", "validation", "by", "column"]
    lines = [line.split() for line in shown(capsys, "data.split").splitlines()]
    assert {key["name"] for key in block["keys"]} <= {words[0] for words in lines if words}
