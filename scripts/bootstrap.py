#!/usr/bin/env python3
"""Runs a command in the project's virtual environment, `.venv`, which is created and filled first if necessary.

    python3 scripts/bootstrap.py finetune run recipes/digits.yaml
    python3 scripts/bootstrap.py --with test python scripts/check.py

Needs nothing but Python 3.11 to 3.13 with pip. Safe to repeat: a finished installation is used again, an interrupted
one starts over.
"""

from __future__ import annotations  # an older Python must get as far as saying that it is too old

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
OLDEST, NEWEST = (3, 11), (3, 13)


def main(arguments: list[str]) -> int:
    """Runs the command in the environment; returns its exit status."""
    extra, command = split(arguments)
    if not command or command[0].startswith("-"):
        print(__doc__)
        return 0 if command in (["-h"], ["--help"]) else 2
    make_environment()
    install(extra)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        sys.exit(f"error: there is no program `{command[0]}`, neither in {BIN} nor on the PATH.")
    return subprocess.run([program, *command[1:]], env=environment, check=False).returncode


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the extra that `--with` names, empty for none, and the command."""
    if arguments[:1] == ["--with"]:
        return "".join(arguments[1:2]), arguments[2:]
    return "", arguments


def make_environment() -> None:
    """Creates `.venv`, unless it exists and its Python works."""
    python = BIN / "python"
    if python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0:
        return
    base = find_python()
    print(f"Creating a virtual environment in {VENV} ...", flush=True)
    created = subprocess.run([base, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False)
    if (
        created.returncode
    ):  # Debian ships Python without ensurepip: this Python's pip fills the environment from outside
        created = subprocess.run([base, "-m", "venv", "--clear", "--without-pip", VENV], check=False)
    if created.returncode:
        sys.exit(f"error: `{base} -m venv` failed. Python's venv module is needed; Debian has it in `python3-venv`.")


def find_python() -> str:
    """Returns this Python if its version is supported, else another on the PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode == 0:
            return other
    have = ".".join(map(str, sys.version_info[:2]))
    sys.exit(
        f"error: finetune needs Python 3.11, 3.12 or 3.13. This is {have}, and the PATH has no other. Install one."
    )


def install(extra: str) -> None:
    """Installs the project, once for each choice of extras, content of pyproject.toml and path of the checkout."""
    stamp = VENV / f".installed-{extra or 'plain'}"
    state = hashlib.sha256(str(ROOT).encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == state:
        return
    print("Installing finetune and what it needs (TensorFlow is about 600 MB; this takes minutes once) ...", flush=True)
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    has_pip = (
        subprocess.run([BIN / "python", "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )
    pip = [BIN / "python", "-m", "pip"] if has_pip else [sys.executable, "-m", "pip", "--python", BIN / "python"]
    done = subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", "-e", target], check=False)
    if done.returncode:
        sys.exit("error: the installation failed; pip says why above. Fix the cause and run the same command again.")
    stamp.write_text(state)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
