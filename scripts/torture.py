"""Ends, fills up and doubles real runs, and counts what they survive: the table of docs/trust.md.

    python scripts/torture.py                   everything, in about an hour
    python scripts/torture.py --only disk       a kind, or a part of the name of a check
    python scripts/torture.py --log done.jsonl  goes on where the same command stopped, with what is not done yet
    python scripts/torture.py --list

A check is a function with `@check(kind, variants)`: it gets an empty folder and a variant, starts the `finetune`
command, and raises where something was lost. Exits 1 where anything was. Other checks are in `torturing/`.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from torturing import inputs, numbers_and_graphs, surroundings  # noqa: F401 - these register their checks
from torturing.harness import (
    CHECKS,
    RECIPE,
    ROOT,
    Check,
    check,
    ended,
    epochs,
    start,
    steps_in,
    wait_for,
)

STEPS_PER_EPOCH = 5
LONG = ("--set", "train.epochs=5000")


# -- Disk -------------------------------------------------------------------------------------------------------------


@check("disk", [10_000, 100_000, 500_000])
def no_room_is_said_before_training(folder: Path, limit: int) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    error = ended(start(folder, *LONG, preexec_fn=small), 1)
    assert error.count("\n") == 1, error
    assert not (folder / "out").exists()


@check("disk", [100, 10_000, 300_000])
def a_limit_on_file_sizes_that_comes_in_the_middle(folder: Path, limit: int) -> None:
    process = start(folder, "--set", "train.epochs=400")
    wait_for(lambda: epochs(folder) > 2)
    saved = steps_in(folder / "out/checkpoints/last.weights.h5")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    error = ended(process, 1)
    assert "error: " in error
    assert steps_in(folder / "out/checkpoints/last.weights.h5") >= saved, "the former checkpoint is lost"


# In a mount namespace of its own: a small disk that is filled up in the middle of a run.
SMALL_DISK = """
set -e
mkdir -p disk && mount -t tmpfs -o size=8m tmpfs disk
"$@" --out disk/out --set train.epochs=300 >said 2>error & run=$!
for i in $(seq 600); do [ -s disk/out/metrics.csv ] && break; sleep 0.1; done
head -c 9m /dev/zero >disk/fill 2>/dev/null || true
wait $run && code=0 || code=$?
exit $code
"""


@check("disk")
def a_disk_that_fills_up_in_the_middle(folder: Path, _: None) -> None:
    run = [sys.executable, "-m", "finetune", "run", str(RECIPE)]
    (folder / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    command = ["unshare", "--map-root-user", "--user", "--mount", "bash", "-c", SMALL_DISK, "run", *run]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    error = (folder / "error").read_text()
    assert done.returncode == 1, f"exit {done.returncode}: {done.stderr} {error}"
    assert error.count("\n") == 1, error
    (weights,) = (folder / "tmp").glob("*.weights.h5")
    assert steps_in(weights) == 300 * STEPS_PER_EPOCH
    assert str(weights) in error


@check("disk", ["removed", "moved", "removed and taken"])
def a_folder_that_goes_away_in_the_middle(folder: Path, how: str) -> None:
    process = start(folder, "--set", "train.epochs=400")
    wait_for(lambda: epochs(folder) > 2)
    shutil.move(folder / "out", folder / "elsewhere")
    if how == "removed and taken":
        (folder / "out").mkdir()
        (folder / "out" / ".lock").write_text("{}")
    error = ended(process, 1)
    (weights,) = (folder / "tmp").glob("*.weights.h5")
    assert str(weights) in error
    assert steps_in(weights) == 400 * STEPS_PER_EPOCH
    assert not (folder / "out").exists() or os.listdir(folder / "out") == [".lock"]


# -- Signals ----------------------------------------------------------------------------------------------------------

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@check("signals", list(CODES))
def the_weights_of_finished_epochs_are_saved(folder: Path, number: signal.Signals) -> None:
    process = start(folder, *LONG, "--set", "train.cache=disk")
    wait_for(lambda: epochs(folder) >= 20)
    process.send_signal(number)
    error = ended(process, CODES[number])
    assert error.count("\n") == 1, error
    steps = steps_in(folder / "out/checkpoints/last.weights.h5")
    assert 0 <= steps - epochs(folder) * STEPS_PER_EPOCH < STEPS_PER_EPOCH
    assert not (folder / "out" / "features").exists()
    assert not (folder / "out" / ".lock").exists()
    assert os.listdir(folder / "tmp") == []


@check("signals", [0.3, 1.0, 2.5, 4.0, 6.0, 8.0])
def a_signal_at_any_moment_ends_in_a_line(folder: Path, seconds: float) -> None:
    process = start(folder, *LONG)
    time.sleep(seconds)
    process.terminate()
    error = ended(process, 143, -signal.SIGTERM if seconds < 1 else 143)  # before Python has run a line of ours
    assert error.count("\n") <= 1, error
    assert not (folder / "out" / ".lock").exists()


@check("signals", [signal.SIGINT, signal.SIGTERM])
def a_second_signal_ends_at_once(folder: Path, number: signal.Signals) -> None:
    process = start(folder, *LONG, "--set", "train.batch_size=1", "--set", "train.steps_per_execution=100")
    wait_for(lambda: (folder / "out" / "plan.json").exists())
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)
    process.wait(timeout=5)
    # The first signal may have done before the second came, which then ends a Python that shuts down.
    ended(process, CODES[number], -number)


@check("signals", range(4))
def a_killed_run_leaves_whole_files_and_no_lock_that_holds(folder: Path, again: int) -> None:
    process = start(folder, *LONG)
    wait_for(lambda: epochs(folder) > 3 * again + 1)
    process.kill()
    process.communicate()
    steps_in(folder / "out/checkpoints/last.weights.h5")
    assert epochs(folder) > 0
    ended(start(folder, "--overwrite", "--set", "train.epochs=1"), 0)
    assert epochs(folder) == 1
    assert not list((folder / "out").glob(".*"))


# By the beginnings of their names: each of these is written under another name first.
WRITTEN = (
    *("recipe.yaml", "data.json", "plan.txt", "plan.json", "restore.json", "environment.json", "metrics.csv"),
    *("checkpoints/step-", "checkpoints/last.weights.h5", "model.keras", "plots/training.png", "report.json"),
    *("predictions.npz", "result.json", "report.html", "model_card.md", "hashes.json"),
)


@check("signals", WRITTEN)
def a_run_that_is_killed_while_it_writes_a_file_ends_whole(folder: Path, name: str) -> None:
    more = ("--resume", "--set", "train.epochs=3")
    where, _, begin = f"out/{name}".rpartition("/")
    process = start(folder, *more)
    while process.poll() is None and not list((folder / where).glob(f".writing-{begin}*")):
        pass
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"`{name}` was not seen before the run had ended"
    ended(start(folder, *more), 0)
    assert not list((folder / "out").rglob(".*")), list((folder / "out").rglob(".*"))
    audit = [sys.executable, "-m", "finetune", "audit", str(folder / "out")]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


# -- Locks ------------------------------------------------------------------------------------------------------------


@check("locks", [(), ("--overwrite",)])
def a_second_run_is_refused_and_the_first_goes_on(folder: Path, more: tuple[str, ...]) -> None:
    first = start(folder, "--set", "train.epochs=1000")
    wait_for(lambda: epochs(folder) > 0)
    error = ended(start(folder, "--set", "train.epochs=4", *more), 2)
    assert f"process {first.pid} on " in error, error
    ended(first, 0)
    assert epochs(folder) == 1000


@check("locks", [2, 4])
def of_runs_that_start_together_one_gets_the_folder(folder: Path, count: int) -> None:
    processes = [start(folder, "--overwrite", "--set", f"train.epochs={200 + n}") for n in range(count)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    # A run that comes after the end of another overwrites it; none mixes with another.
    assert set(codes) <= {0, 2}, (codes, errors)
    assert 0 in codes
    assert f"epochs: {epochs(folder)}" in (folder / "out" / "recipe.yaml").read_text()
    assert not (folder / "out" / ".lock").exists()


# -- The table --------------------------------------------------------------------------------------------------------


def torture(one: Check, variant: Any) -> str:
    """Tries a check with a variant; returns what was lost, empty where nothing was."""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            one.function(Path(folder), variant)
        except Exception as error:  # whatever it is, the run did not do what it promises
            return f"{type(error).__name__} {error}"
    return ""


def tried(chosen: Sequence[Check], log: Path) -> list[tuple[Check, dict[str, str]]]:
    """Tries checks with all their variants, except what the log has.

    Args:
        chosen: The checks.
        log: A line in JSON for each variant: `check`, `variant` and what was `lost`. The lines of a former session are
            taken as they are.

    Returns:
        Each check with what was lost by each of its variants, as text; empty where nothing was.
    """
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    done = {(line["check"], line["variant"]): line["lost"] for line in lines}
    results = []
    for one in chosen:
        for variant in one.variants:
            if (key := (one.name, str(variant))) not in done:
                done[key] = torture(one, variant)
                with log.open("a") as file:
                    print(json.dumps({"check": one.name, "variant": key[1], "lost": done[key]}), file=file)
        results.append((one, {str(variant): done[one.name, str(variant)] for variant in one.variants}))
    return results


def main() -> None:
    """Runs the checks and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a kind, or a part of the name of a check")
    parser.add_argument("--list", action="store_true", help="name the checks alone")
    parser.add_argument("--log", type=Path, help="file of what is done, which the same command goes on with")
    arguments = parser.parse_args()
    chosen = [one for one in CHECKS if arguments.only == one.kind or arguments.only in one.name]
    if not chosen:
        parser.error(f"No check is called `{arguments.only}`; see `--list`.")
    if arguments.list:
        print("\n".join(f"{one.kind}: {one.name}" for one in chosen))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = tried(chosen, arguments.log or Path(folder) / "log")
    print("| kind | check | tried | survived | lost |\n|---|---|---|---|---|")
    for one, lost in results:
        count = sum(map(bool, lost.values()))
        print(f"| {one.kind} | {one.name} | {len(lost)} | {len(lost) - count} | {count} |")
    problems = [f"lost: {one.name} ({name}): {text}" for one, lost in results for name, text in lost.items() if text]
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
