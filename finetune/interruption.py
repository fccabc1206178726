"""Signals that ask the process to end: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes.

Within `stoppable` the first of them raises `Stopped` in the main thread, so that every `finally` tidies up. Training
defers it to the end of a step: `with deferred()`, and a callback that asks `stopped`. A second signal ends the process
at once, also while TensorFlow computes: a thread is told of it, since Python runs handlers only between two steps of
its own. TensorFlow prints and loses an exception that comes in the middle of some of its functions in C++, or in an
import that those have begun, or makes another one of it. So `Stopped` waits, for a second at most, for other code.
"""

import dis
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

# SIGHUP does not exist on Windows.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Wrappers such as `uv run` pass on a Ctrl-C that the terminal has sent to all processes: it arrives twice, at once.
_SAME_SIGNAL_SECONDS = 0.3
_LONGEST_WAIT_SECONDS = 1.0
_TENSORFLOW = f"{os.sep}tensorflow{os.sep}python{os.sep}"


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end.

    Attributes:
        exit_code: 128 + the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
        kept: What was kept, as sentences; empty where nothing is to be said.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number, self.exit_code, self.kept = signal_number, 128 + signal_number, ""

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signal_number == signal.SIGINT else signal.Signals(self.signal_number).name
        return f"stopped by {name}" + (f". {self.kept}" if self.kept else "")


@dataclass
class _State:
    """What this process knows of its signals, which exist once in a process."""

    installed: bool = False
    deferred: int = 0
    stop: Stopped | None = None
    since: float = 0.0  # when the first signal came


_state = _State()


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets a signal raise `Stopped` in the block, and a second one end the process.

    A handler that somebody else has installed stays, and so does a signal that is ignored (`nohup`). The block can be
    nested; outside of the main thread it does nothing, as Python delivers no signals there.
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) in defaults}
    _state.installed, _state.stop, _state.deferred = True, None, 0
    with _second_signal_watched():
        try:
            for number in replaced:
                signal.signal(number, _on_signal)
            yield
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)
            _state.installed, _state.stop = False, None


@contextmanager
def deferred() -> Iterator[None]:
    """Lets a signal wait for the end of the block, or for code in it that asks `stopped`.

    Raises:
        Stopped: A signal came, and the block ended without an error.
    """
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1
    if (stop := stopped()) and not _state.deferred:
        raise stop


def stopped() -> Stopped | None:
    """Returns the exception to raise where a signal has come in the block of `stoppable`."""
    return _state.stop


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.stop is None:
        _state.stop, _state.since = Stopped(number), time.monotonic()
        _raise(_state.stop, frame)
    elif time.monotonic() - _state.since >= _SAME_SIGNAL_SECONDS:
        _end_at_once(number)


def _raise(stop: Stopped, frame: FrameType | None) -> None:
    """Raises, unless that is deferred; where it would be lost, tries again in a hundredth of a second."""
    if _state.deferred or _state.stop is not stop:
        return
    waits = hasattr(signal, "setitimer") and time.monotonic() < _state.since + _LONGEST_WAIT_SECONDS
    if not (waits and frame and (_TENSORFLOW in frame.f_code.co_filename or _is_imported_by_c(frame))):
        raise stop
    before = signal.getsignal(signal.SIGALRM)

    def again(number: int, later: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, before)
        _raise(stop, later)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _is_imported_by_c(frame: FrameType | None) -> bool:
    """Whether code that runs is part of an import which neither an `import` statement nor `importlib` has begun."""
    while frame and (caller := frame.f_back):
        if _imports(frame) and not _imports(caller) and caller.f_code.co_filename != importlib.__file__:
            begun_by = dis.opname[caller.f_code.co_code[caller.f_lasti]]
            if begun_by != "IMPORT_NAME":
                return True
        frame = caller
    return False


def _imports(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith("<frozen importlib")


@contextmanager
def _second_signal_watched() -> Iterator[None]:
    """Ends the process at the second signal, from a thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if before != -1:  # an event loop, as that of a notebook, listens already: the handler alone must do
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
        yield
        return
    thread = threading.Thread(target=_watch, args=(reader,), name="second signal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)  # ends the thread
        thread.join()
        os.close(reader)


def _watch(reader: int) -> None:
    first = None
    while number := os.read(reader, 1):
        if number[0] not in _SIGNALS:
            continue
        first = time.monotonic() if first is None else first
        if time.monotonic() - first >= _SAME_SIGNAL_SECONDS:
            _end_at_once(number[0])


def _end_at_once(number: int) -> None:
    with suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(128 + number)
