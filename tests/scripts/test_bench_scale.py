import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scale.py"


def printed(*options: str) -> list[list[str]]:
    """Runs the script; returns the rows of its tables."""
    command = [sys.executable, str(SCRIPT), "--predict", *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split() for line in lines if line.split()[0].isdecimal()]


def test_the_model_of_scaling_is_its_formula():
    """100 ms of compute, 100 MB: 8 workers send 175 MB at 1 GB/s and wait for 14 messages of 1 ms."""
    rows = printed("--step-ms", "100", "--megabytes", "100", "--gbit", "8", "--latency-us", "1000", "--rows", "10")
    weak, strong = rows[:6], rows[6:]
    assert weak[0][1:] == ["1.00"] * 4
    assert float(weak[1][1]) == pytest.approx(0.1 / (0.1 + 0.175 + 0.014), abs=0.005)
    assert float(weak[1][2]) == pytest.approx(0.1 / (0.1 + 0.0875 + 0.014), abs=0.005), "half of the weights are frozen"
    fixed, row = 0.005, 0.0095
    assert float(strong[1][1]) == pytest.approx((fixed + 80 * row) / (8 * (fixed + 10 * row + 0.189)), abs=0.005)
    for row in rows:
        assert sorted(row[1:]) == row[1:], "what is frozen is not sent"
