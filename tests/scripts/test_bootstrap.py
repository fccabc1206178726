import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """The script as a module, for a project in an empty folder."""
    spec = importlib.util.spec_from_file_location("bootstrap_for_a_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "BIN", tmp_path / ".venv" / "bin")
    return module


@pytest.fixture
def installed(bootstrap, tmp_path):
    """An environment whose `python` only writes down how it was called, and fails when told to."""
    log, python = tmp_path / "calls", tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n[ ! -e {tmp_path}/broken ] || [ "$3" != install ]\n')
    python.chmod(0o755)

    def installs():
        return [line for line in log.read_text().splitlines() if line.startswith("-m pip install")]

    return installs


def test_the_options_come_before_the_command(bootstrap):
    assert bootstrap.split(["finetune", "run", "--with", "x"]) == ("", ["finetune", "run", "--with", "x"])
    assert bootstrap.split(["--with", "test", "python", "-V"]) == ("test", ["python", "-V"])
    assert bootstrap.split(["--with"]) == ("", [])


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["--with"], 2), (["--wiht", "x"], 2), (["-h"], 0), (["--help"], 0)]
)
def test_without_a_command_it_explains_itself_and_makes_nothing(bootstrap, capsys, tmp_path, arguments, code):
    assert bootstrap.main(arguments) == code
    assert "python3 scripts/bootstrap.py finetune run recipes/digits.yaml" in capsys.readouterr().out
    assert not (tmp_path / ".venv").exists()


def test_this_python_is_used_if_it_will_do(bootstrap):
    assert bootstrap.find_python() == sys.executable


def test_another_python_is_used_if_this_one_will_not_do(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 90))
    monkeypatch.setattr(bootstrap, "NEWEST", (3, 92))
    for name, exit_code in [("python3.92", 1), ("python3.91", 0), ("python3.90", 0)]:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {exit_code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.find_python() == str(tmp_path / "python3.91")  # the newest that works


def test_without_any_python_that_will_do_it_says_which_are_needed(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 90))
    monkeypatch.setattr(bootstrap, "NEWEST", (3, 92))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11, 3\.12 or 3\.13\. This is 3\."):
        bootstrap.find_python()


def test_it_is_written_so_that_an_older_python_can_read_it():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    assert "from __future__ import annotations" in SCRIPT.read_text()


def test_it_installs_once(bootstrap, installed, tmp_path):
    bootstrap.install("")
    bootstrap.install("")
    assert installed() == [f"-m pip install --quiet --disable-pip-version-check -e {tmp_path}"]


def test_it_installs_again_for_other_extras_another_project_file_and_another_place(
    bootstrap, installed, tmp_path, monkeypatch
):
    bootstrap.install("")
    bootstrap.install("test")
    assert installed()[-1].endswith(f"-e {tmp_path}[test]")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'new'\n")
    bootstrap.install("test")
    assert len(installed()) == 3
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "pyproject.toml").write_text("[project]\nname = 'new'\n")
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    bootstrap.install("test")
    assert installed()[-1].endswith(f"-e {moved}[test]")


def test_an_installation_that_failed_is_tried_again(bootstrap, installed, tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(SystemExit, match="the installation failed"):
        bootstrap.install("")
    (tmp_path / "broken").unlink()
    bootstrap.install("")
    bootstrap.install("")
    assert len(installed()) == 2


def test_an_environment_that_works_is_kept(bootstrap, installed, tmp_path):
    bootstrap.make_environment()
    assert (tmp_path / ".venv" / "bin" / "python").read_text().startswith("#!/bin/sh")


@pytest.mark.slow
def test_an_environment_that_does_not_work_is_made_anew(bootstrap, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    bootstrap.make_environment()
    assert (
        subprocess.run([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"], check=False).returncode
        == 0
    )


def test_the_command_runs_in_the_environment_and_its_exit_code_is_handed_on(bootstrap, installed, tmp_path):
    program = tmp_path / ".venv" / "bin" / "tool"
    program.write_text(f'#!/bin/sh\necho "$VIRTUAL_ENV" "$@" > {tmp_path}/said\nexit 7\n')
    program.chmod(0o755)
    assert bootstrap.main(["tool", "a b", "--with"]) == 7
    assert (tmp_path / "said").read_text() == f"{tmp_path / '.venv'} a b --with\n"


def test_a_command_that_is_not_there_is_a_short_error(bootstrap, installed):
    with pytest.raises(SystemExit, match="there is no program `nowhere-to-be-found`"):
        bootstrap.main(["nowhere-to-be-found"])
    assert os.environ.get("VIRTUAL_ENV") != str(bootstrap.VENV)
