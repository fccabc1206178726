"""The command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TENSORFLOW = """
import sys
sys.argv = ["finetune", *sys.argv[1:]]
from finetune.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
loaded = {name.split(".")[0] for name in sys.modules} & {"tensorflow", "keras", "tensorflow_hub", "numpy", "h5py"}
assert not loaded, loaded
"""


@pytest.fixture
def without_tensorflow():
    """A script that runs the command with the arguments it gets, and fails if a large library is loaded by it."""
    return WITHOUT_TENSORFLOW


@pytest.fixture
def environment():
    """The variables of the process: wide enough for tables, and without the settings of the tests for TensorFlow."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return {**kept, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent), "COLUMNS": "100"}


@pytest.fixture
def finetune(environment):
    """Runs the command with arguments, and returns the finished process with its output as text."""

    def call(*arguments, **more):
        command = [sys.executable, "-m", "finetune", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False, **more
        )

    return call


@pytest.fixture
def refused(finetune):
    """Runs a command that must fail with a message alone; returns the message."""

    def call(*arguments, code=2):
        done = finetune(*arguments)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        return done.stderr

    return call
