#!/usr/bin/env python3
"""Runs a command in the project's own virtual environment, which is made and filled first if need be.

    python3 scripts/bootstrap.py finetune run recipes/digits.yaml
    python3 scripts/bootstrap.py --with test python scripts/check.py

Needs nothing but Python 3.11 to 3.13 with pip. Safe to repeat: what is there is used, an interrupted
installation begins anew.
"""

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
    extra = ""
    if arguments[:1] == ["--with"] and len(arguments) > 1:
        extra, arguments = arguments[1], arguments[2:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    make_environment()
    install(extra)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}
    program = shutil.which(arguments[0], path=environment["PATH"]) or arguments[0]
    return subprocess.run([program, *arguments[1:]], env=environment, check=False).returncode


def make_environment() -> None:
    """Makes `.venv`, unless it is there and works."""
    python = BIN / "python"
    if python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0:
        return
    base = find_python()
    print(f"Making a virtual environment in {VENV} ...", flush=True)
    made = subprocess.run([base, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False)
    if made.returncode:  # some distributions ship Python without ensurepip; the pip outside can fill the environment
        subprocess.run([base, "-m", "venv", "--clear", "--without-pip", VENV], check=True)


def find_python() -> str:
    """Returns this Python if it is of a supported version, else one on the PATH that is."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other and subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode == 0:
            return other
    have = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: finetune needs Python 3.11, 3.12 or 3.13. This is {have}, and no other was found. Install one.")


def install(extra: str) -> None:
    """Installs the project, once for each state of pyproject.toml and choice of extras."""
    stamp = VENV / f".installed-{extra or 'plain'}"
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
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
        sys.exit("error: the installation failed; pip says why above. Mend it and run the same command again.")
    stamp.write_text(state)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
