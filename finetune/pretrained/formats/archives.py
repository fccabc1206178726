"""Archives of weights, unpacked into a temporary folder that lives as long as the weights do."""

import shutil
import tempfile
import weakref
from pathlib import Path

from finetune.errors import FinetuneError, RestoreError
from finetune.models.unpacking import extract


class Unpacked:
    """A folder with the files of an archive; it is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-"))
        self.clear = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def unpack(path: Path) -> Unpacked:
    """Unpacks a tar or zip archive into a temporary folder.

    Raises:
        RestoreError: It must not be unpacked; see `finetune.models.unpacking.extract`.
    """
    unpacked = Unpacked()
    try:
        extract(path, unpacked.folder)
    except Exception as error:
        unpacked.clear()
        if isinstance(error, FinetuneError):
            raise RestoreError(str(error)) from error
        raise
    return unpacked
