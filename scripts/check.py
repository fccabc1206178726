#!/usr/bin/env python3
"""Runs every check of the project: format, lint, types, floors and tests.

python scripts/check.py               # all, as CI does
python scripts/check.py --fast        # without the tests marked slow
python scripts/check.py --grid        # with all members of long grids of tests, of which CI runs a sample
python scripts/check.py --coverage    # with a table of the lines that no test reaches; the tests take 10 to 40 % longer
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Runs all checks, whichever fail; returns 1 if one failed."""
    if not set(arguments) <= {"--fast", "--grid", "--coverage"}:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    marked = [*(["-m", "not slow"] if "--fast" in arguments else []), *(["--grid"] if "--grid" in arguments else [])]
    # Coverage is called for every function of Keras and TensorFlow, too. What the tests catch is measured by mutate.py.
    covered = ["--cov", "--cov-report", "term"] if "--coverage" in arguments else []
    checks = {
        "format": ["ruff", "format", "--check", "."],
        "lint": ["ruff", "check", "."],
        "types": ["basedpyright", "--level", "error"],
        "floors": ["lint-imports"],
        "tests": ["pytest", "-n", "2", "--dist", "worksteal", "--durations", "25", *covered, *marked],
    }
    failed = [name for name, command in checks.items() if not passes(name, command)]
    print(f"\n{'FAILED: ' + ', '.join(failed) if failed else 'all checks passed'}")
    return 1 if failed else 0


def passes(name: str, command: list[str]) -> bool:
    """Runs one check in the project's folder and prints how long it took."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(f"== {name}: {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
