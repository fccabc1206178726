"""Tries in a process of its own what may crash: the HDF5 library does so over some damaged files."""

import faulthandler
import os
import signal
import time
import warnings
from collections.abc import Callable

_SECONDS = 20.0


def survives(work: Callable[[], object]) -> bool:
    """Whether a piece of work ends without crashing or hanging the process; errors that Python knows are fine.

    It is done in a fork of this process, whose memory and open files it shares and whose state it leaves alone. Where
    there are no forks (Windows) it is not tried, and the answer is yes.
    """
    if not hasattr(os, "fork"):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: the child does not need what they hold
        child = os.fork()
    if child == 0:
        _end_after(work)
    return _ended_well(child)


def _end_after(work: Callable[[], object]) -> None:
    try:
        faulthandler.disable()  # else a crash would be told on the terminal
        work()
    finally:
        os._exit(0)


def _ended_well(child: int) -> bool:
    deadline = time.monotonic() + _SECONDS
    pause = 0.0005
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
