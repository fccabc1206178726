"""Writes checkpoints one after another, large ones in a thread: training goes on once their content is copied.

Hashing, writing and bringing a file to the disk takes most of the time of a checkpoint, and needs no Python lock.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from finetune.errors import WriteError
from finetune.training.checkpoints.checkpoint_file import Saved, prune, write_checkpoint

# Smaller ones are written at once: a thread would save milliseconds, and a process that is killed lose a step more.
IN_BACKGROUND = 32 * 2**20


# By the folder: a training that was interrupted in a notebook and begins again waits for the file of the former.
_threads: dict[Path, Thread] = {}


@dataclass(frozen=True)
class WrittenCheckpoint:
    """What came of writing a checkpoint.

    Attributes:
        path: The file; `None` where it could not be written.
        error: Why not, as a sentence; empty where it could.
        seconds: How long it took.
    """

    path: Path | None
    error: str
    seconds: float


class CheckpointWriter:
    """Writes the checkpoints of a folder, and removes old ones. Waits for what is being written there already.

    Args:
        folder: Where to.
        keep: How many of the newest files stay, >= 1.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.in_background = folder, keep, IN_BACKGROUND
        self._result: WrittenCheckpoint | BaseException | None = None
        self.wait()

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        thread = _threads.get(self.folder.absolute())
        return thread is not None and thread.is_alive()

    def write(self, saved: Saved, *, steps: int) -> None:
        """Writes a checkpoint, or begins to; `result` says what came of it. Waits for the former to be written.

        Args:
            saved: The content, which nobody else changes.
            steps: Steps made.
        """
        self.wait()
        if sum(array.nbytes for array in saved.arrays.values()) < self.in_background:
            self._write(saved, steps)
            return
        # Not a daemon: a process that ends waits for it.
        _threads[self.folder.absolute()] = thread = Thread(target=self._write, args=(saved, steps), name="checkpoint")
        thread.start()

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if thread := _threads.pop(self.folder.absolute(), None):
            thread.join()

    def result(self) -> WrittenCheckpoint | None:
        """Returns what came of the latest checkpoint, once; `None` while it is written or where there is none.

        Raises:
            Exception: What the writing has raised, but for a `WriteError` or a lack of memory.
        """
        if self.is_busy:
            return None
        result, self._result = self._result, None
        if isinstance(result, BaseException):
            raise result
        return result

    def _write(self, saved: Saved, steps: int) -> None:
        begun = time.monotonic()
        path, error = None, ""
        try:
            path = write_checkpoint(self.folder, saved, steps=steps)
            prune(self.folder, self.keep)
        except (WriteError, MemoryError) as failure:
            error = str(failure) if isinstance(failure, WriteError) else "A checkpoint needs more memory than there is."
        except BaseException as failure:  # raised where the result is asked for, in the thread that trains
            self._result = failure
            return
        self._result = WrittenCheckpoint(path, error, time.monotonic() - begun)
