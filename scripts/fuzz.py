"""Feeds finetune thousands of wrong inputs, and counts how often it does anything but work or say what is wrong.

    python scripts/fuzz.py --count 10000 --commands plan,run --out fuzz

Each input (`fuzz_inputs.py`) is a command with its files, made from the seed and the number of the input. A worker
process runs them one after another with one start of TensorFlow; if it dies, or computes for long, the input counts as
such, and another worker goes on. `--out` keeps a line for each input: the same command again goes on where it stopped.
A worker computes with one thread in a folder in memory, reads an HDF5 file with the same content once in a process of
its own, and draws the figures of every tenth input.

Counted are: an *internal* error (anything but finetune's own errors and those of the command line), a *traceback* in
the output, a *hang* (more than 5 seconds of the processor), a *crash* of the process, and a refusal *without a place*:
neither a line of the recipe, nor an option that was typed, nor the file that was named. A last line of `0` for all of
them is the goal.
"""

import argparse
import contextlib
import gc
import hashlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
sys.path.insert(0, str(SCRIPTS))

from fuzz_inputs import COMMANDS, Case, make_case, make_pristine  # noqa: E402 - as the other scripts import each other
from fuzz_run_folders import RUN_COMMANDS, make_runs  # noqa: E402

FAULTS = ("internal", "traceback", "hang", "crash", "no place")
HANG_SECONDS = 5.0
PER_WORKER = 400  # inputs; a process in which many networks were built becomes slow and large
DRAWN = 10  # figures of every so many inputs are drawn: they take a fifth of the time of a run
_MEMORY = Path("/dev/shm")
KILL_SECONDS = 60.0  # of the processor, or ten times as many of a clock for one that waits for something
# A line of a recipe or of a file, `--set`, or what the parser of the command line says.
_PLACE = re.compile(
    r"^(?:[^\n`]+:\d+:\d+: |--set |Error: (?:Invalid value for|No such|Missing|Got unexpected|Option))", re.M
)


def run_case(case: Case) -> dict[str, Any]:
    """Runs the command of an input in the working folder, in this process.

    Returns:
        `outcome` (`finished`, `refused`, `failed` or `internal`), `faults`, `seconds` and the `message`.
    """
    from typer.testing import CliRunner

    from finetune.cli import app
    from finetune.errors import FinetuneError

    begin = time.process_time()  # not the wall clock, which says what else the machine does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, case.arguments, env={"COLUMNS": "200"})
    seconds = time.process_time() - begin
    error = result.exception
    message = str(error) if isinstance(error, FinetuneError) else result.output[-2000:]
    outcome = "finished" if not result.exit_code else "failed"
    if isinstance(error, FinetuneError):
        outcome = "refused" if error.exit_code == 2 else "failed"
    elif result.exit_code == 2 and isinstance(error, SystemExit):
        outcome = "refused"
    elif error is not None and not isinstance(error, SystemExit):
        outcome, message = "internal", f"{type(error).__name__}: {error}"
    faults = ["internal"] if outcome == "internal" else []
    faults += ["traceback"] if "Traceback (most recent" in result.output else []
    faults += ["hang"] if seconds > HANG_SECONDS else []
    if outcome == "refused" and not has_place(message, case):
        faults.append("no place")
    return {"outcome": outcome, "faults": faults, "seconds": round(seconds, 2), "message": message[:1500]}


def has_place(message: str, case: Case) -> bool:
    """Returns whether a refusal says where: a line of the recipe, an option that was typed, or a file that was named.

    An option that the message advises to add says nothing of where the fault is.
    """
    named = [argument for argument in case.arguments[1:] if argument and not argument.startswith("-")]
    typed = [argument for argument in case.arguments if re.match("--[a-z]", argument)]
    return (
        bool(_PLACE.search(message))
        or any(re.search(rf"{option}\b", message) for option in typed)
        or any(f"`{name}`" in message or f"`{name}/" in message for name in named)
    )


def run_here(seed: int, numbers: Sequence[int], commands: Sequence[str], pristine: Path) -> Iterator[dict[str, Any]]:
    """Runs inputs in this process, one after another, and yields what came of each."""
    before = Path.cwd()
    # Files of a run are brought to the disk, which is waited for.
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        try:
            for number in numbers:
                case = make_case(seed, number, tuple(commands))
                case.write(pristine, Path(folder) / "case")
                os.chdir(Path(folder) / "case")
                yield {"number": number, "command": case.arguments[0], **run_case(case), "arguments": case.arguments}
        finally:
            os.chdir(before)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the counts as a table in Markdown, a row for each command."""
    lines = ["| command | inputs | finished | refused | failed | " + " | ".join(FAULTS) + " |", "|---" * 10 + "|"]
    for command in [*dict.fromkeys(record["command"] for record in records), ""]:
        of_command = [record for record in records if command in ("", record["command"])]
        outcomes = Counter(record["outcome"] for record in of_command)
        faults = Counter(fault for record in of_command for fault in record["faults"])
        counts = [len(of_command), *(outcomes[name] for name in ("finished", "refused", "failed"))]
        cells = [command or "all", *map(str, counts), *(str(faults[name]) for name in FAULTS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spare_what_repeats() -> None:
    """Lets this process do once, or seldom, what takes long and is the same for most inputs."""
    from finetune.commands import run_after as run
    from finetune.files import hdf5_check

    survey, draw = hdf5_check._survey_in_process, run.draw_curves
    answers: dict[tuple[bytes, str], Any] = {}
    runs = itertools.count()

    def survey_once(path: Path, member: str) -> Any:
        key = hashlib.sha256(path.read_bytes()).digest(), member
        if key not in answers:  # the exception of a damaged file is not kept
            answers[key] = survey(path, member)
        return answers[key]

    def draw_seldom(*arguments: Any, **options: Any) -> None:
        if next(runs) % DRAWN == 0:
            draw(*arguments, **options)

    hdf5_check._survey_in_process, run.draw_curves = survey_once, draw_seldom
    gc.collect()
    gc.freeze()  # the garbage collector does not search TensorFlow and Keras for each input


def _work(seed: int, first: int, last: int, step: int, commands: Sequence[str], out: Path) -> None:
    """The worker: writes a line for each input, and before it the number of the input that begins."""
    from finetune.startup import start_tensorflow

    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    start_tensorflow()
    _spare_what_repeats()
    # A logger may hold the output of an input before, which is closed; that is no fault of the input.
    logging.raiseExceptions = False
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = os.getppid()
    with (out / "log.jsonl").open("a") as log:
        numbers = range(first, last, step)
        (out / "begun").write_text(str(first))
        for record in run_here(seed, numbers, commands, out / "pristine"):
            print(json.dumps(record), file=log, flush=True)
            (out / "begun").write_text(str(record["number"] + step))
            if os.getppid() != parent:
                return  # it was stopped, and so is this


def _read(out: Path) -> list[dict[str, Any]]:
    log = out / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def processor_seconds(process: int) -> float:
    """Returns how long a process has computed, which a busy machine does not change; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(seed: int, count: int, commands: Sequence[str], out: Path, *, first: int = 0, step: int = 1) -> None:
    """Runs all inputs in worker processes, from where an earlier session stopped."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pristine").exists():
        make_pristine(out / "pristine")
    if {*RUN_COMMANDS} & {*commands} and not (out / "pristine" / "runs").exists():
        make_runs(out / "pristine")
    done = [record["number"] for record in _read(out)]
    number = max([first - step, *done]) + step
    while number < count:
        last = min(count, number + PER_WORKER * step)
        settings = [str(seed), str(number), str(last), str(step), ",".join(commands), str(out)]
        with (out / "worker.txt").open("ab") as output:
            worker = subprocess.Popen([sys.executable, __file__, "--worker", *settings], stdout=output, stderr=output)
            changed, computed = time.monotonic(), 0.0
            latest = None
            while (
                worker.poll() is None
                and processor_seconds(worker.pid) - computed < KILL_SECONDS
                and time.monotonic() - changed < 10 * KILL_SECONDS
            ):
                time.sleep(0.2)
                with contextlib.suppress(OSError):
                    if (now := (out / "begun").read_text()) != latest:
                        latest, changed, computed = now, time.monotonic(), processor_seconds(worker.pid)
            is_hanging = worker.poll() is None
            worker.kill()
            worker.wait()
        number = max([first - step, *(record["number"] for record in _read(out))]) + step
        if worker.returncode == 0:
            continue
        case = make_case(seed, number, tuple(commands))
        record = {"number": number, "command": case.arguments[0], "outcome": "failed", "arguments": case.arguments}
        record |= {
            "faults": ["hang" if is_hanging else "crash"],
            "seconds": 0.0,
            "message": f"exit {worker.returncode}",
        }
        with (out / "log.jsonl").open("a") as log:
            print(json.dumps(record), file=log)
        number += step


def main() -> None:
    """Reads the options, runs the inputs, and prints the faults and the table."""
    if sys.argv[1:2] == ["--worker"]:
        seed, first, last, step, commands, out = sys.argv[2:]
        _work(int(seed), int(first), int(last), int(step), commands.split(","), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commands", default=",".join(COMMANDS), help="separated by commas; default: all that take no run"
    )
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder of the log")
    options = parser.parse_args()
    out = options.out.absolute()
    fuzz(options.seed, options.count, options.commands.split(","), out)
    records = _read(out)
    for record in records:
        if record["faults"]:
            print(
                f"{record['number']}: {', '.join(record['faults'])}: {record['arguments']}: {record['message'][:300]}"
            )
    print(table(records))


if __name__ == "__main__":
    main()
