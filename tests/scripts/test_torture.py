import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("torture", ROOT / "scripts" / "torture.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture"] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["torture"]


def test_a_check_that_raises_counts_as_lost_and_says_what(script, tmp_path):
    def odd_numbers_fail(folder, number):
        assert list(folder.iterdir()) == []
        (folder / "file").touch()
        assert number % 2 == 0, f"{number} is odd"

    check = script.Check("arithmetic", "odd numbers", odd_numbers_fail, [1, 2, 4])
    ((tried, lost),) = script.tried([check], tmp_path / "log")
    assert tried is check
    assert lost["1"].startswith("AssertionError 1 is odd")
    assert lost == {"1": lost["1"], "2": "", "4": ""}


def test_a_session_goes_on_with_what_the_log_does_not_have(script, tmp_path):
    seen = []
    check = script.Check("counting", "seen", lambda folder, number: seen.append(number), [1, 2, 3])
    log = tmp_path / "log"
    script.tried([script.Check("counting", "seen", check.function, [1, 2])], log)
    ((_, lost),) = script.tried([check], log)
    assert seen == [1, 2, 3]
    assert lost == {"1": "", "2": "", "3": ""}


def test_every_kind_has_checks_and_a_name_that_does_not_exist_is_an_error(script):
    kinds = {
        "disk",
        "signals",
        "locks",
        "numbers",
        "graphs",
        "sound files",
        "links",
        "bombs",
        "names",
        "inputs",
        "time",
    }
    assert {check.kind for check in script.CHECKS} == kinds | {"surroundings"}
    names = [check.name for check in script.CHECKS]
    assert len(set(names)) == len(names)
    command = [sys.executable, ROOT / "scripts" / "torture.py", "--list", "--only", "dsk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No check is called `dsk`" in done.stderr


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("a file of weights reads no other file", "virtual"),
        ("a small file that asks for gigabytes gets none", "tar_with_a_pax_header_of_gigabytes"),
        ("names in weights are shown escaped", "\x1b[31mred"),
        ("check tells before tensorflow starts", "a taken folder"),
    ],
)
@pytest.mark.slow
def test_a_sample_of_the_checks_survives(script, tmp_path, name, variant):
    (check,) = [check for check in script.CHECKS if check.name == name]
    assert variant in check.variants
    check.function(tmp_path, variant)


@pytest.mark.slow
def test_a_run_that_finds_no_room_survives(script, tmp_path):
    script.no_room_is_said_before_training(tmp_path, 10_000)
