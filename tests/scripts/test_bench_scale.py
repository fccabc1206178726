import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scale.py"


def run(*options, **more):
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, **more)


def test_the_model_of_scaling_is_its_formula_and_its_tables_go_between_the_marks_of_a_page(tmp_path):
    """100 ms of compute, 100 MB: 8 workers send 175 MB at 1 GB/s and wait for 14 messages of 1 ms."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- written by scripts/bench_scale.py -->\nold\n<!-- until here -->\nafter\n")
    costs = ["--step-ms", "100", "--megabytes", "100", "--gbit", "8", "--latency-us", "1000", "--rows", "10"]
    printed = run("--predict", *costs, "--write", str(page)).stdout
    assert page.read_text() == (
        f"before\n<!-- written by scripts/bench_scale.py -->\n{printed}<!-- until here -->\nafter\n"
    )
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if line[0].isdecimal()]
    weak, strong = rows[:5], rows[5:]  # 1,024 has a comma, and 80 rows are for 32 workers at most
    assert weak[0][1:] == ["1.00"] * 4
    assert float(weak[1][1]) == pytest.approx(0.1 / (0.1 + 0.175 + 4 * 0.014), abs=0.005)
    assert float(weak[1][2]) == pytest.approx(0.1 / (0.1 + 0.0875 + 4 * 0.014), abs=0.005), (
        "half of the weights are frozen"
    )
    fixed, row = 0.005, 0.0095
    assert [line[0] for line in strong] == ["1", "8", "32"]
    assert float(strong[1][1]) == pytest.approx(
        (fixed + 80 * row) / (8 * (fixed + 10 * row + 0.175 + 4 * 0.014)), abs=0.005
    )
    for line in rows:
        assert sorted(line[1:]) == line[1:], "what is frozen is not sent"


def test_a_link_that_cannot_be_made_or_is_none_is_refused_with_a_sentence():
    done = run("--link", "0")
    assert (done.returncode, "megabits a second > 0" in done.stderr) == (2, True)
    done = run("--link", "100:0.01", env=os.environ | {"PATH": "/nowhere"})
    assert done.returncode == 1
    assert done.stderr.startswith(
        "A link of limited bandwidth between two network namespaces is made by root, with `ip` and `tc`"
    )
    assert ("Missing here: ip, tc, nft. Install `iproute2`" in done.stderr) == (os.geteuid() == 0)
