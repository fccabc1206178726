"""Tells failures of the machine from damage: memory, disk, open files and processes that run out, storage that fails.

An exception while a file is read is taken as evidence about the file: it is called damaged, or its row is skipped. Out
of memory is none, nor is a network drive that does not answer. So each place that takes any exception as evidence calls
`raise_machine_failure` first.
"""

import errno
import os
import re

from finetune.errors import MachineError, printable

_MEMORY = "there is not enough memory", "Close other programs, use a smaller batch or model, or a machine with more"
_DISK = "there is no room on a disk", "Free some space, also in the folder of temporary files (`TMPDIR`)"
_FILES = "too many files are open", "Raise the limit: `ulimit -n 65536`"
_PROCESSES = "no more threads or processes can be started", "Raise the limit: `ulimit -u`"
_STORAGE = "the storage does not answer", "Try again when it does"
_SIZE = "a file would be larger than this process may write", "Raise the limit: `ulimit -f unlimited`"
_NUMBERS = {
    errno.ENOMEM: _MEMORY,
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EFBIG: _SIZE,
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN), _STORAGE),
}
# What libraries say in errors of their own classes. TensorFlow puts errors of Python into the text of `UnknownError`.
_SAID = (
    (re.compile(r"MemoryError\b|std::bad_alloc|Unable to allocate|[Mm]emory allocation failed|out of memory"), _MEMORY),
    (
        re.compile(r"failed to allocate memory|Cannot allocate memory|cannot allocate memory|failed to map segment"),
        _MEMORY,
    ),
    (re.compile(r"No space left on device|Disk quota exceeded"), _DISK),
    (re.compile(r"Too many open files"), _FILES),
    (re.compile(r"can't start new thread|Resource temporarily unavailable"), _PROCESSES),
    (re.compile(r"Input/output error|Stale file handle|Connection timed out"), _STORAGE),
)
_NUMBER = re.compile(r"(?:\[Errno |errno = )(\d+)")


def machine_failure(error: BaseException) -> tuple[str, str] | None:
    """Returns what of the machine has failed, and what to do; `None` where an error is about what was read.

    Args:
        error: Any exception; what it was raised from counts, too.

    >>> machine_failure(OSError(24, "Too many open files"))
    ('too many files are open', 'Raise the limit: `ulimit -n 65536`')
    >>> machine_failure(ValueError("bad header"))
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)[:10_000]
        if isinstance(cause, MemoryError):
            return _MEMORY
        if isinstance(cause, OSError) and cause.errno in _NUMBERS:
            return _NUMBERS[cause.errno]
        if (match := _NUMBER.search(text)) and int(match[1]) in _NUMBERS:
            return _NUMBERS[int(match[1])]
        if isinstance(cause, OSError | RuntimeError | ImportError) or _is_of_tensorflow(cause):
            for said, failure in _SAID:
                if said.search(text):
                    return failure
        if type(cause).__name__ == "ResourceExhaustedError":
            return _MEMORY
        cause = cause.__cause__
    return None


def _is_of_tensorflow(error: BaseException) -> bool:
    # Without an import: recipes are checked where TensorFlow is not loaded.
    return any(kind.__name__ == "OpError" for kind in type(error).__mro__)


def raise_machine_failure(error: BaseException, doing: str) -> None:
    """Raises where an error is not about what was read but about the machine; else returns.

    Args:
        error: What was caught.
        doing: What was being done, as the subject of a sentence: "Reading `x.npz`".

    Raises:
        MachineError: Memory, room, open files or processes have run out, or storage fails.
    """
    if isinstance(error, MachineError):
        raise error
    if "MachineError: " in str(error):  # raised by us in a function that TensorFlow called
        text = str(error).rpartition("MachineError: ")[2].partition("\n")[0]
        raise MachineError(text) from error
    if failure := machine_failure(error):
        what, advice = failure
        raise MachineError(
            f"{doing} failed because {what}, which says nothing about what was read. {advice}."
        ) from error


def failure_text(error: BaseException) -> str:
    """Returns a line for an error of the machine that nobody has caught; empty for other errors.

    >>> failure_text(MemoryError())
    'There is not enough memory. Close other programs, use a smaller batch or model, or a machine with more.'
    """
    failure = machine_failure(error)
    if failure is None:
        return ""
    what, advice = failure
    named = getattr(error, "filename", None)
    place = f" (`{printable(os.fsdecode(named))}`)" if isinstance(named, str | bytes) else ""
    return f"{what[0].upper()}{what[1:]}{place}. {advice}."
