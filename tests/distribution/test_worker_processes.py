"""Real processes of small programs, which need no TensorFlow."""

import os
import signal
import sys
import threading
import time

import pytest

from finetune.distribution.cluster import read_tf_config
from finetune.distribution.worker_processes import finetune_command, launch, local_clusters
from finetune.errors import FinetuneError, MachineError, TrainingError
from finetune.interruption import Stopped, stoppable

_INDEX = "import json, os, signal, sys, time; index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"


@pytest.fixture
def started(tmp_path):
    """Launches a program in processes; returns the exit code, the lines shown and the seconds that it took."""

    def start(program, workers=3, **options):
        lines, begin = [], time.monotonic()
        show = lambda line, is_error: lines.append((line, is_error))  # noqa: E731
        command = [sys.executable, "-c", _INDEX + program]
        try:
            result = launch(command, workers, logs=tmp_path / "logs", show=show, **options)
        except (TrainingError, Stopped) as error:
            result = error
        return result, lines, time.monotonic() - begin

    return start


def test_a_log_that_cannot_be_written_is_told_once_and_the_workers_go_on(started, tmp_path):
    (tmp_path / "logs").write_text("no folder")
    code, lines, _ = started("print('one'); print('two')", workers=2)
    told = sorted(line for line, is_error in lines if is_error)
    assert (code, len(lines) - len(told)) == (0, 4)
    logs = [tmp_path / "logs" / f"worker-{n}.log" for n in range(2)]
    assert told == [f"warning: `{log}` cannot be written and lacks lines: File exists" for log in logs]


def test_each_process_knows_its_place_and_its_output_is_shown_and_kept(started, tmp_path):
    code, lines, _ = started("print('worker', index); print('wrong', file=sys.stderr)")
    assert code == 0
    assert sorted(lines) == sorted(
        [(f"{n}: worker {n}", False) for n in range(3)] + [(f"{n}: wrong", True) for n in range(3)]
    )
    logs = {path.name: sorted(path.read_text().splitlines()) for path in (tmp_path / "logs").iterdir()}
    assert logs == {f"worker-{n}.log": [f"worker {n}", "wrong"] for n in range(3)}


def test_lines_are_kept_until_the_folder_of_the_logs_may_be_written(started, tmp_path):
    ready = tmp_path / "ready"
    program = f"print('first'); sys.stdout.flush(); open({str(ready)!r}, 'w').close() if index == 0 else 0"
    assert started(program, is_ready=ready.exists)[0] == 0
    assert (tmp_path / "logs" / "worker-1.log").read_text() == "first\n"


def test_without_it_no_folder_is_made(started, tmp_path):
    assert started("print('first')", is_ready=lambda: False)[0] == 0
    assert not (tmp_path / "logs").exists()


def test_a_process_that_fails_ends_the_others_and_its_exit_code_is_that_of_all(started, monkeypatch):
    monkeypatch.setattr("finetune.distribution.worker_processes.END_SECONDS", 6.0)
    code, _, seconds = started("sys.exit(7) if index == 1 else time.sleep(100)")
    assert code == 7
    assert seconds < 15


def test_a_process_that_is_killed_is_named_and_the_others_are_ended_even_if_they_do_not_listen(started, monkeypatch):
    monkeypatch.setattr("finetune.distribution.worker_processes.END_SECONDS", 6.0)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    error, _, seconds = started(deaf + "os.kill(os.getpid(), 9) if index == 2 else time.sleep(100)")
    assert str(error).startswith(
        "All workers of a run train together. Worker 2 was ended by SIGKILL, and the others were ended after it. Go on from "
        "the newest checkpoint with the same command, `--out` and `--resume`. What it has printed is in `"
    )
    assert seconds < 20


def test_a_signal_is_passed_on_and_ends_the_launch_when_all_have_ended(started):
    program = """
def end(number, frame):
    print("got", number)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("ready")
sys.stdout.flush()
time.sleep(100)
"""
    with stoppable():
        threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        stop, lines, seconds = started(program, workers=2)
    assert isinstance(stop, Stopped)
    assert stop.exit_code == 143
    assert sorted(line for line, _ in lines) == ["0: got 15", "0: ready", "1: got 15", "1: ready"]
    assert seconds < 30


def test_a_program_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(MachineError, match=r"Worker 0 cannot be started: No such file or directory\."):
        launch([str(tmp_path / "none")], 2, logs=tmp_path, show=print)


def test_a_single_worker_is_refused():
    with pytest.raises(FinetuneError, match=r"Several workers are at least 2\. Received `--workers 1`\."):
        local_clusters(1)


def test_local_workers_have_ports_of_their_own():
    clusters = local_clusters(4)
    assert len({*clusters[0].addresses}) == 4
    assert [read_tf_config({"TF_CONFIG": each.to_tf_config()}).addresses for each in clusters] == [
        clusters[0].addresses
    ] * 4


def test_the_command_is_that_of_this_python():
    assert finetune_command("run", "a.yaml") == [sys.executable, "-m", "finetune", "run", "a.yaml"]
