import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.errors import LockError, WriteError
from finetune.results.run_lock import LOCK_FILE, LockOwner, check_unlocked, locked

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from finetune.errors import LockError
from finetune.results.run_lock import locked
while time.time() < float(sys.argv[2]):
    pass
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except LockError as error:
    print(error)
"""


def holder(folder, at=0.0):
    """A process that takes the lock at a moment, says so, and keeps it until it is spoken to."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_many_processes_that_start_at_the_same_moment_one_gets_the_lock_and_the_others_hear_who(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{}")  # a stale one, which all of them find
    processes = [holder(tmp_path, at=time.time() + 1.5) for _ in range(6)]
    said = [process.stdout.readline() for process in processes]
    (winner,) = [process for process, line in zip(processes, said, strict=True) if line == "held\n"]
    for line in said:
        assert line == "held\n" or f"is in use: process {winner.pid} on `{socket.gethostname()}`, since 20" in line
    for process in processes:
        process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    process = holder(tmp_path)
    process.stdout.readline()
    with pytest.raises(LockError):
        check_unlocked(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    check_unlocked(tmp_path)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def owner(**changes):
    """What the lock file of this very process says, with changes."""
    folder = changes.pop("folder")
    (folder / LOCK_FILE).unlink(missing_ok=True)
    with locked(folder):
        content = json.loads((folder / LOCK_FILE).read_text())
    (folder / LOCK_FILE).write_text(json.dumps({**content, **changes}))
    return LockOwner(**{**content, **changes})


def test_a_process_id_that_another_process_has_now_does_not_hold_a_lock(tmp_path):
    assert not owner(folder=tmp_path).is_gone()
    assert owner(folder=tmp_path, process_started="another start").is_gone()
    check_unlocked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_process_that_runs_holds_its_lock_also_where_the_file_system_has_no_locks(tmp_path):
    owner(folder=tmp_path)  # the file alone; no system lock
    with pytest.raises(LockError, match=rf"is in use: process {os.getpid()} on "), locked(tmp_path):
        pass


def test_a_lock_of_another_host_stays_and_the_file_to_remove_is_named(tmp_path):
    owner(folder=tmp_path, host="elsewhere", pid=7, since="2026-01-02 03:04:05")
    with pytest.raises(LockError) as error, locked(tmp_path):
        pass
    assert str(error.value) == (
        f"A run folder is written by a single run at a time. `{tmp_path}` is in use: process 7 on `elsewhere`, since "
        "2026-01-02 03:04:05. Wait for its end, or choose another folder with `--out`. If that process has ended, "
        f"remove `{tmp_path / LOCK_FILE}`."
    )
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", '{"pid": 1}', '{"pid": 1, "host": "h", "since": "", "process_started": "", "more": 1}'),
        *('{"pid": -1, "host": "h", "since": "", "process_started": ""}', '{"pid": "1", "host": 2, "since": 3}'),
        json.dumps({"pid": 2**60, "host": socket.gethostname(), "since": "", "process_started": ""}),
    ],
)
def test_a_damaged_lock_file_of_no_process_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    check_unlocked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_lock_that_another_run_took_meanwhile_is_not_removed(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).write_text("of another run")
    assert (tmp_path / LOCK_FILE).read_text() == "of another run"


def test_a_folder_that_cannot_be_written_to_is_an_error_with_advice():
    with pytest.raises(WriteError, match=re.escape("`/proc/.lock` cannot be written: ")), locked(Path("/proc")):
        pass


def test_a_lock_file_of_brackets_is_that_of_nobody(tmp_path):
    (tmp_path / ".lock").write_text("[" * 4000)
    check_unlocked(tmp_path)
