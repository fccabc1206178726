"""Temporary folders that do not stay for ever: those of processes that were killed are removed by the next.

Each holds a file that its process keeps locked (`flock`). The system drops that lock however the process ends, so a
folder whose lock can be taken belongs to nobody any longer.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "finetune-work-"
_LOCK = ".in-use"


class TemporaryFolder:
    """A folder that is removed with the last reference to this object, or when the process ends.

    Args:
        parent: Where it is made; by default the folder of temporary files (`TMPDIR`).
        prefix: Begins its name, and those of the folders that are looked at for being left over.

    Attributes:
        path: An empty folder inside, for whatever is needed.
        remove: Removes the folder at once; later calls do nothing.
    """

    def __init__(self, parent: Path | None = None, prefix: str = PREFIX):
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        _remove_left_over(parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Locked before it has its name: until then nobody takes the folder for one that was left.
        descriptor = os.open(folder / f"{_LOCK}-new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.remove = weakref.finalize(self, _remove, folder, descriptor)
        with suppress(OSError):  # a file system without locks: such a folder is never looked at again
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / f"{_LOCK}-new", folder / _LOCK)
        self.path = folder / "content"
        self.path.mkdir(mode=0o700)


@contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """Yields an empty folder, which is removed at the end of the block."""
    folder = TemporaryFolder(parent, prefix)
    try:
        yield folder.path
    finally:
        folder.remove()


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _remove_left_over(parent: Path, prefix: str) -> None:
    """Removes the folders of this user whose processes have ended."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            state = folder.lstat()
            if folder.is_symlink() or not folder.is_dir() or state.st_uid != os.geteuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
