"""Archives are unpacked into a folder of their own, and nothing in them can get out of it."""

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from finetune.errors import FinetuneError, quote, reason

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")


def is_archive(path: Path) -> bool:
    """Whether the file's name is that of an archive."""
    return path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, cache: Path) -> Path:
    """Unpacks an archive once, into a folder below `cache` that is named after its content.

    Args:
        archive: A `.tar`, `.tar.gz`, `.tgz` or `.zip` file.
        cache: Folder for unpacked archives; made when it is missing.

    Returns:
        The folder; another call with the same content returns the same one.

    Raises:
        FinetuneError: If the archive cannot be read, or holds paths that lead out of it, links or devices.
    """
    with archive.open("rb") as file:
        folder = cache / hashlib.file_digest(file, "sha256").hexdigest()
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        _extract(archive, partial)
        os.replace(partial, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _extract(archive: Path, into: Path) -> None:
    try:
        with _opened(archive) as members:
            _check_safe(archive, members)
            for member in members:
                member.write(into)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        if isinstance(e, FinetuneError):
            raise
        raise FinetuneError(
            f"An archive is a whole {quote(ENDINGS)} file. `{archive}` cannot be read: {reason(e)}. Get it again, or "
            "unpack it yourself and name the folder."
        ) from e


def _check_safe(archive: Path, members: "list[_Member]") -> None:
    outside = [member.name for member in members if _leads_out(member.name)]
    strange = [member.name for member in members if not member.is_plain]
    if outside or strange:
        what = "paths that lead out of it" if outside else "links or devices"
        raise FinetuneError(
            f"An archive holds only files and folders of its own. `{archive}` holds {what}: "
            f"{quote(outside or strange)}. Nothing was unpacked; do not trust it."
        )


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or name[1:2] == ":"


class _Member:
    """One entry of an archive of either kind."""

    def __init__(self, name: str, is_folder: bool, is_file: bool, opened: Any):
        self.name, self.is_folder, self.is_plain, self._open = name, is_folder, is_folder or is_file, opened

    def write(self, into: Path) -> None:
        path = into / self.name
        if self.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        source: IO[bytes]
        with self._open() as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [_zip_member(file, info) for info in file.infolist()]
    else:
        with tarfile.open(archive) as file:
            yield [_tar_member(file, info) for info in file.getmembers()]


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return _Member(info.filename, info.is_dir(), kind in (0, stat.S_IFREG), lambda: file.open(info))


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.isdir(), info.isfile(), lambda: file.extractfile(info))
