"""The lock of a run folder: a single run writes it at a time.

The file `.lock` names the process, its host and since when. The system locks the open file (`flock`), so taking it is
atomic, and a process that dies loses it, however it dies. What the file says serves the message, and decides where the
system's lock cannot: another host, or a file system without locks.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.errors import LockError, WriteError
from finetune.plain_shapes import SIZE, fault

LOCK_FILE = ".lock"
_OWNER = {"pid": SIZE, "host": str, "since": str, "process_started": str, "": None}


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock.

    Attributes:
        pid: Its process id.
        host: The name of its machine.
        since: When it took the lock, in local time.
        process_started: When the process started, as the system counts; empty where that is not known. A process id is
            used again later, by a process that started at another time.
    """

    pid: int
    host: str
    since: str
    process_started: str

    def is_gone(self) -> bool:
        """Whether the process is known to have ended: it was on this host, and no process has its id and start."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):  # of a number that no process can have
            return True
        except OSError:  # it belongs to somebody else
            pass
        return bool(self.process_started) and _process_started(self.pid) != self.process_started


# The folders that this process holds, each with the device and inode of its lock file.
_held: list[tuple[Path, tuple[int, int]]] = []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of an existing folder. A lock whose process has ended is taken over.

    Raises:
        LockError: Another run writes the folder.
        WriteError: It cannot be written to.
    """
    path = folder.absolute() / LOCK_FILE
    try:
        descriptor = _take(path)
    except OSError as error:
        raise WriteError(
            f"A run folder is locked while a run writes it. `{folder / LOCK_FILE}` cannot be written: "
            f"{error.strerror}. Choose another folder with `--out`."
        ) from error
    entry = path.parent, _identity(os.fstat(descriptor))
    _held.append(entry)
    try:
        yield
    finally:
        _held.remove(entry)
        if _is_file(path, entry[1]):  # not that of a run which took the name since
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Checks that no run writes a folder; changes nothing.

    Raises:
        LockError: A run does.
    """
    path = folder.absolute() / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # none, or not readable: taking it will say so
    try:
        _lock(descriptor, path)
    finally:
        os.close(descriptor)


def check_held(path: Path) -> None:
    """Checks, for a file in a folder whose lock this process took, that it still holds the lock.

    Raises:
        WriteError: The folder was removed or moved meanwhile, or another run has taken it.
    """
    locks = {folder: identity for folder, identity in _held if path.absolute().is_relative_to(folder)}
    for folder, identity in locks.items():
        if not _is_file(folder / LOCK_FILE, identity):
            what = "holds another run" if (folder / LOCK_FILE).exists() else "was removed or moved while a run wrote it"
            raise WriteError(
                f"A run writes to the folder that it has locked. `{folder}` {what}; `{path.name}` is lost."
            )


def _take(path: Path) -> int:
    """Returns the descriptor of the lock file, which is now this process' own."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path)
            if _is_file(path, _identity(os.fstat(descriptor))):
                owner = LockOwner(
                    os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"), _process_started(os.getpid())
                )
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed the file between `open` and `flock`: once more


def _lock(descriptor: int, path: Path) -> None:
    """Locks an open lock file, or raises the LockError that says who holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _owner(descriptor)
        for _ in range(50):
            if owner is not None and not owner.is_gone():
                break
            time.sleep(0.01)  # the holder has locked the file and is about to write its name over that of a former one
            owner = _owner(descriptor)
        raise LockError(_in_use(path, owner)) from None
    except OSError:
        pass  # a file system without locks: what the file says must do
    owner = _owner(descriptor)
    if owner is not None and not owner.is_gone():
        raise LockError(_in_use(path, owner))


def _owner(descriptor: int) -> LockOwner | None:
    """Returns whom a lock file names; `None` where it names nobody: its writer died meanwhile, or it is not ours."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return None
    return None if fault(content, _OWNER) else LockOwner(**content)


def _in_use(path: Path, owner: LockOwner | None) -> str:
    who = f"process {owner.pid} on `{owner.host}`, since {owner.since}" if owner else "another process"
    elsewhere = owner is not None and owner.host != socket.gethostname()
    advice = f" If that process has ended, remove `{path}`." if elsewhere else ""
    return (
        f"A run folder is written by a single run at a time. `{path.parent}` is in use: {who}. Wait for its end, or "
        f"choose another folder with `--out`.{advice}"
    )


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _is_file(path: Path, identity: tuple[int, int]) -> bool:
    """Whether a path names the file with this identity."""
    try:
        return _identity(path.stat()) == identity
    except OSError:
        return False


def _process_started(pid: int) -> str:
    """Returns when a process started, in ticks since the system started, after the name of that start."""
    try:
        # The second field is the command in parentheses, which may hold any character; the start is the 22nd.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"
    except (OSError, IndexError):
        return ""
