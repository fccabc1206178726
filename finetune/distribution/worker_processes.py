"""Starts the workers of a run as processes of this machine, as `torchrun` does. No TensorFlow in this process.

If you are reading, go to `launch`. The workers find each other by `TF_CONFIG`. What they print goes to the terminal
line by line, behind the number of the worker, and of each into a file.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.distribution.cluster import VARIABLE, Cluster
from finetune.errors import FinetuneError, MachineError, TrainingError
from finetune.interruption import Stopped, deferred, stopped

END_SECONDS = 30.0  # in which the others end where a worker has ended with an error
_KILL_SECONDS = 5.0  # more, until a worker that does not end is killed
_POLL_SECONDS = 0.1
LAUNCHER = "FINETUNE_LAUNCHER"  # tells a worker the process that has started it, with which it ends


@dataclass
class _Worker:
    """A process, and the file of what it prints."""

    index: int
    process: subprocess.Popen[bytes]
    log: "_Log"
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def code(self) -> int | None:
        """How it has ended, as shells say it: 128 + the signal where one ended it; `None` while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code


def launch(
    command: Sequence[str],
    workers: int,
    *,
    logs: Path,
    show: Callable[[str, bool], None],
    is_ready: Callable[[], bool] = lambda: True,
) -> int:
    """Runs a command in several processes that know of each other, and waits for all of them.

    Where one ends with an error the others are asked to end, and are killed where they do not. A signal that comes
    meanwhile is passed on.

    Args:
        command: The command line.
        workers: How many processes, >= 2.
        logs: The folder of the logs: `worker-0.log` and so on.
        show: Called with each line of a worker, behind its number, and with whether it is an error.
        is_ready: Whether the logs may be written now; until then the lines are kept. Where they never may, no folder
            is made.

    Returns:
        The exit code: 0 where all workers have ended with 0, else that of the first that has not.

    Raises:
        TrainingError: A worker was killed.
        MachineError: A process cannot be started.
    """
    with deferred():
        begun: list[_Worker] = []
        try:
            for cluster in local_clusters(workers):  # one by one: those that were started are ended if one cannot be
                log = _Log(logs / f"worker-{cluster.index}.log", is_ready, show)
                begun.append(_start(command, cluster, log, show))
            first = _wait(begun)
        finally:
            _end(begun)
    if first is None:
        return 0
    code = first.code or 1
    if code > 128:
        name = _signal_name(code - 128)
        raise TrainingError(
            f"All workers of a run train together. Worker {first.index} was ended by {name}, and the others were ended "
            "after it. Go on from the newest checkpoint with the same command, `--out` and `--resume`. What it has "
            f"printed is in `{logs / f'worker-{first.index}.log'}`."
        )
    return code


def local_clusters(workers: int) -> list[Cluster]:
    """Returns the cluster of each of several processes of this machine, at ports that are free now.

    Args:
        workers: How many, >= 2.

    Raises:
        FinetuneError: There are fewer.
    """
    if workers < 2:
        raise FinetuneError(
            f"Several workers are at least 2. Received `--workers {workers}`. `finetune run` trains in a single "
            "process."
        )
    with ExitStack() as held:  # all at once, so that no port is given twice
        sockets = [held.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    return [Cluster(addresses, index, "finetune launch") for index in range(workers)]


def _start(command: Sequence[str], cluster: Cluster, log: "_Log", show: Callable[[str, bool], None]) -> _Worker:
    more = {VARIABLE: cluster.to_tf_config(), LAUNCHER: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    try:
        # A process group of its own: a Ctrl-C at the terminal reaches it once, through this process.
        process = subprocess.Popen(
            command,
            env=os.environ | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    except OSError as error:
        raise MachineError(
            f"Each worker is a process of its own. Worker {cluster.index} cannot be started: {error.strerror}."
        ) from error
    worker = _Worker(cluster.index, process, log)
    for stream, is_error in ((process.stdout, False), (process.stderr, True)):
        options = (worker, stream, is_error, show)
        thread = threading.Thread(target=_read, args=options, name=f"output of worker {cluster.index}", daemon=True)
        thread.start()
        worker.threads.append(thread)
    return worker


class _Log:
    """The file of what a worker prints; where it cannot be written, that is said once, and training goes on.

    Args:
        path: The file.
        is_ready: Whether it may be written now.
        show: Gets the sentence.
    """

    def __init__(self, path: Path, is_ready: Callable[[], bool], show: Callable[[str, bool], None]):
        self._path, self._is_ready, self._show, self._lock = path, is_ready, show, threading.Lock()
        self._kept: list[bytes] = []
        self._is_broken = False

    def write(self, line: bytes = b"") -> None:
        """Writes a line, and those that were kept."""
        with self._lock:
            self._kept.append(line)
            if self._is_ready():
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    with self._path.open("ab") as file:  # anew each time: the chief may remove an older run first
                        file.writelines(self._kept)
                except OSError as error:
                    if not self._is_broken:
                        self._show(f"warning: `{self._path}` cannot be written and lacks lines: {error.strerror}", True)
                    self._is_broken = True
                self._kept = []


def _read(worker: _Worker, stream: Any, is_error: bool, show: Callable[[str, bool], None]) -> None:
    """Passes on what a worker prints, line by line, in a thread of its own."""
    with stream:
        for line in stream:
            worker.log.write(line if line.endswith(b"\n") else line + b"\n")
            show(f"{worker.index}: {line.decode('utf-8', 'replace').rstrip()}", is_error)


def _wait(workers: Sequence[_Worker]) -> _Worker | None:
    """Waits until all have ended, and returns the first that has ended with an error; ends the others then."""
    first: _Worker | None = None
    asked: float | None = None
    passed: Stopped | None = None
    while any(worker.code is None for worker in workers):
        if passed is None and (passed := stopped()):
            _send(workers, passed.signal_number)
        failed = [worker for worker in workers if worker.code]
        if failed and asked is None:
            # They notice it themselves, and say so; a worker that was killed is named by a signal.
            first, asked = max(failed, key=lambda worker: (worker.code or 0) > 128), time.monotonic()
        if asked is not None and time.monotonic() > asked + END_SECONDS - _KILL_SECONDS and not passed:
            _send(workers, signal.SIGTERM)
            return first
        time.sleep(_POLL_SECONDS)
    failed = [worker for worker in workers if worker.code]
    return first or next(iter(failed), None)


def _send(workers: Sequence[_Worker], number: int) -> None:
    for worker in workers:
        if worker.code is None:
            with suppress(OSError):
                worker.process.send_signal(number)


def _end(workers: Sequence[_Worker]) -> None:
    """Leaves no process behind."""
    end = time.monotonic() + _KILL_SECONDS
    while any(worker.code is None for worker in workers) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    _send(workers, signal.SIGKILL)
    for worker in workers:
        worker.process.wait()
        for thread in worker.threads:
            thread.join(timeout=_KILL_SECONDS)
        worker.log.write()


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def finetune_command(*arguments: str) -> list[str]:
    """Returns the command line of `finetune` in this very Python."""
    return [sys.executable, "-m", "finetune", *arguments]
