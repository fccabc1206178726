"""Runs a function in a process of its own first, to see whether it crashes the process.

The HDF5 library crashes with a segmentation fault, or never returns, on some damaged files. No `except` catches that:
the only safe way to read an HDF5 file of unknown origin is to let another process try it first.
"""

import faulthandler
import os
import signal
import time
import warnings
from collections.abc import Callable

_SECONDS = 20.0


def runs_without_crash(work: Callable[[], object]) -> bool:
    """Whether a function ends without crashing or hanging the process. Python exceptions count as a normal end.

    The function runs in a fork of this process: it sees the same memory and open files, and what it changes there
    stays in the fork. On systems without `fork` it is not tried and the answer is yes.

    Args:
        work: What to try. It gets 20 seconds.
    """
    if not hasattr(os, "fork"):
        return True
    with warnings.catch_warnings():
        # Python warns of forks in a process with several threads, since a lock that another thread holds stays locked
        # in the child. The child only reads a file and takes none of TensorFlow's locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # else a crash prints a traceback on the user's terminal
            work()
        finally:
            # Neither cleans up nor flushes: the buffers and the exit handlers are copies of the parent's.
            os._exit(0)
    return _exits_normally(child)


def _exits_normally(child: int) -> bool:
    """Waits for a child process, with pauses that grow from 0.5 to 50 ms, and kills it when its time is over."""
    deadline = time.monotonic() + _SECONDS
    pause = 0.0005
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0  # negative for a signal: -11 is a segmentation fault
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)  # else the killed child stays in the process table
    return False
