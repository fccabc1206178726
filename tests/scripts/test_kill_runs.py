"""A sample of `scripts/kill_runs.py`: real processes, killed at random moments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_runs.py"


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_is_not(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--only",
        "until, ema",
        "--kills",
        "2",
        "--per-run",
        "2",
        "--work",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.search(
        r"\n\d+ kills, 1 cases, 1 runs, 0 ends with another bit, 0 times .* 0 damaged files\n$", done.stdout
    )
    # Called again, it goes on where it was: nothing is left to be done.
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("kills") == 1
