"""The page for coding agents: its commands are those of the program."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from finetune.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
IN_TEXT = [text for text in re.findall(r"`(finetune [^`]+)`", PAGE) if "NAME" not in text]
COMMANDS = [line.partition("  #")[0] for block in BLOCKS for line in block.splitlines()] + IN_TEXT


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_on_the_page_is_one_with_its_options(line):
    program, name, *arguments = shlex.split(line)
    assert program == "finetune"
    command = typer.main.get_command(app).commands[name]
    assert command.make_context(name, arguments)


def test_the_page_names_every_command_that_prints_json():
    commands = typer.main.get_command(app).commands
    with_json = [name for name, command in commands.items() if any("--json" in each.opts for each in command.params)]
    assert {"check", "plan", "data", "keys", "inspect", "compare", "env", "evaluate", "recipes"} <= set(with_json)
    assert [name for name in with_json if f"finetune {name} " not in PAGE and name != "env"] == []


def test_the_page_is_one_page_and_its_links_lead_somewhere():
    assert len(PAGE.splitlines()) < 60
    assert all((ROOT / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link)


def test_llms_txt_has_the_commands_and_every_page_of_the_site():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    text = hooks.llms_text(settings["nav"], settings["site_description"], PAGE)
    assert text.startswith(f"# finetune\n\n> {settings['site_description']}.\n\n## For coding agents")
    assert all(block in text for block in BLOCKS)
    places = re.findall(r"^- \[.+\]\(\./(.*)\)$", text, re.MULTILINE)
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"notebooks/digits"}
    assert sorted(places) == sorted("" if name == "index" else f"{name}/" for name in pages)
