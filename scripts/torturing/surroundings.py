"""Odd machines: no home, no folder for temporary files, closed streams, little memory, strange paths, old leftovers."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from torturing.harness import check, ended, environment, epochs, finetune, start, tiny

PATHS = [
    "with spaces",
    "line\nbreak",
    "größe 核 🙂",
    "quote'\"`$(x)",
    "-dash",
    "n" * 250,
    "%s{}[0]*",
    "\x1b[31m",
    "a:b",
]


@check("surroundings", PATHS)
def a_run_in_a_folder_of_any_name(folder: Path, name: str) -> None:
    inner = folder / name
    inner.mkdir()
    tiny(inner)
    out = inner / name
    said = finetune(inner, "run", inner / "r.yaml", "--out", out)
    assert (out / "model.keras").is_file()
    assert "\x1b" not in said


@check("surroundings", ["HOME", "TERM", "LANG C", "PATH", "everything"])
def a_run_without_an_environment(folder: Path, lacks: str) -> None:
    tiny(folder)
    env = environment(folder)
    if lacks == "everything":
        env = {"PYTHONPATH": env["PYTHONPATH"]}
    elif lacks == "TERM":
        env["TERM"] = "dumb"
    elif lacks == "LANG C":
        env |= {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    else:
        del env[lacks]
    finetune(folder, "run", "r.yaml", "--out", "out", env=env)
    assert (folder / "out" / "model.keras").is_file()


_READ_ONLY = """
set -e
mkdir -p ro && mount -t tmpfs -o size=1m tmpfs ro
{before}
mount -o remount,ro ro
exec "$@"
"""


@check("surroundings", ["HOME", "TMPDIR", "out", "the recipe's folder"])
def a_run_on_a_read_only_file_system(folder: Path, what: str) -> None:
    tiny(folder)
    env = environment(folder)
    arguments = ["run", "r.yaml", "--out", "out"]
    codes = (0,)
    if what in ("HOME", "TMPDIR"):
        env[what] = str(folder / "ro")
    elif what == "out":
        arguments[-1], codes = "ro/out", (2,)
    else:
        arguments[1] = "ro/r.yaml"
    before = "cp r.yaml net.keras d.npz ro/" if what.startswith("the") else "true"
    script = _READ_ONLY.replace("{before}", before)
    command = ["unshare", "--map-root-user", "--user", "--mount", "bash", "-c", script, "sh"]
    command += [sys.executable, "-m", "finetune", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode in codes, f"exit {done.returncode}: {done.stderr[-1000:]}"
    assert "Traceback" not in done.stderr, done.stderr
    assert "please report" not in done.stderr, done.stderr


@check("surroundings", ["| head -1", ">&-", "<&-", "2>&-", ">/dev/full", ">&- 2>&- <&-"])
def a_run_with_closed_streams_trains_to_its_end(folder: Path, streams: str) -> None:
    tiny(folder)
    command = f"{sys.executable} -m finetune run r.yaml --out out {streams}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=folder, env=environment(folder), capture_output=True,
        text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert (folder / "out" / "result.json").is_file(), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (1 if streams == ">/dev/full" else 0), (done.returncode, done.stderr)


@check("surroundings", [300_000, 600_000, 1_200_000, 2_400_000, 4_800_000])
def little_memory_ends_in_a_line_or_in_success(folder: Path, kilobytes: int) -> None:
    tiny(folder)
    command = f"ulimit -v {kilobytes}; exec {sys.executable} -m finetune run r.yaml --out out"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=1200,
        check=False,
    )  # fmt: skip
    assert "damaged" not in done.stderr, done.stderr
    # TensorFlow itself ends the process where it gets no memory while it starts: nothing is lost then.
    assert done.returncode in (0, 1, 2) or not (folder / "out").exists(), (
        f"exit {done.returncode}: {done.stderr[-800:]}"
    )
    assert "please report" not in done.stderr, done.stderr[-800:]


@check("surroundings", ["keras", "numpy", "json", "yaml", "sitecustomize"])
def leftovers_in_the_working_folder_are_not_run(folder: Path, module: str) -> None:
    tiny(folder)
    trap = f"open({str(folder / 'RAN')!r}, 'w')\nraise SystemExit(9)"
    (folder / "out").mkdir()
    for place in (folder, folder / "out"):
        (place / f"{module}.py").write_text(trap)
    script = Path(sys.executable).with_name("finetune")
    command = [str(script), "run", "r.yaml", "--out", "out", "--overwrite"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "RAN").exists(), "code of the working folder was run"


@check("signals", range(20))
def sigterm_at_a_random_moment(folder: Path, seed: int) -> None:
    process = start(folder, "--set", "train.epochs=5000")
    time.sleep(random.Random(seed).uniform(1.5, 12))
    process.terminate()
    error = ended(process, 143)
    assert error.count("\n") <= 1, error
    assert not (folder / "out" / ".lock").exists()
    assert not [name for name in os.listdir(folder / "tmp") if name.startswith("finetune-")]
    if epochs(folder) > 0:
        assert (folder / "out" / "checkpoints" / "last.weights.h5").exists(), error


@check("locks", [2, 3])
def lr_range_tests_that_start_together_share_no_folder(folder: Path, count: int) -> None:
    tiny(folder, extra="")
    command = [sys.executable, "-m", "finetune", "lr-range", "r.yaml", "--out", "out", "--steps", "60"]
    options = {"cwd": folder, "env": environment(folder), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **options) for _ in range(count)]  # pyright: ignore
    errors = [process.communicate(timeout=1200)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes.count(2) == count - 1, (codes, errors)
    assert not (folder / "out" / ".lock").exists()
