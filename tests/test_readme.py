import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile("".join(blocks("python")), "README.md", "exec"), names)
    history = names["history"].history
    assert {"loss", "learning_rate/body", "learning_rate/head"} <= set(history)
    assert names["optimizer"].learning_rates["head"] == pytest.approx(1e-3)


def test_the_recipe_in_the_readme_is_the_one_that_runs():
    assert (ROOT / "recipes" / "digits.yaml").read_text(encoding="utf-8") in blocks("yaml")


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_in_the_readme_is_one():
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python3 ")]
    assert len(commands) == 2
    assert all((ROOT / command.split()[1]).is_file() for command in commands)


def test_every_schedule_and_every_option_is_named():
    from finetune.recipe.learning_rates import SCHEDULES

    page = (ROOT / "docs" / "writing_recipes.md").read_text(encoding="utf-8")
    assert [name for name in SCHEDULES if f"`{name}`" not in page] == []
    for option in ("--set", "--allow-code", "--out", "--weights", "--json"):
        assert option in README


@pytest.mark.slow
def test_the_script_to_copy_runs():
    command = [sys.executable, ROOT / "scripts" / "restore_and_train.py", "--epochs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "18 weights restored from" in done.stdout
    accuracy = float(done.stdout.rpartition("test accuracy: ")[2])
    assert accuracy > 0.5
