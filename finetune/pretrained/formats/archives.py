"""Unpacks archives of weights into a temporary folder that exists as long as the weights read from it."""

from pathlib import Path

from finetune.errors import FinetuneError, RestoreError
from finetune.files.temporary_folders import TemporaryFolder
from finetune.machine_failures import raise_machine_failure
from finetune.models.unpacking import extract


class UnpackedArchive:
    """A temporary folder with the files of an archive.

    Whoever reads from `folder` keeps a reference to this object: the folder is removed with the last reference, or
    when the process ends.

    Attributes:
        folder: The temporary folder.
        remove: Removes the folder at once; later calls do nothing.
    """

    def __init__(self) -> None:
        folder = TemporaryFolder()
        self.folder, self.remove = folder.path, folder.remove
        self._keeps = folder


def unpack(path: Path) -> UnpackedArchive:
    """Unpacks a tar or zip archive into a temporary folder.

    Raises:
        RestoreError: The archive must not be unpacked: it would write outside the folder, holds links or devices, or
            grows too large; see `finetune.models.unpacking.extract`.
    """
    unpacked = UnpackedArchive()
    try:
        extract(path, unpacked.folder)
    except Exception as error:
        unpacked.remove()  # not when the error is collected: its traceback keeps this frame alive
        raise_machine_failure(error, f"Unpacking `{path}`")
        if isinstance(error, FinetuneError):
            raise RestoreError(str(error)) from error
        raise
    return unpacked
