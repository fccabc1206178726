"""Archives, unpacked into a folder of their own: nothing gets out, nothing swells without bound."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from finetune.errors import FinetuneError, quote, reason

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
MOST_FILES = 10_000
MOST_BYTES = 64 * 2**30
_SWELL = 200  # weights hardly compress: an archive that unpacks to this many times its size holds something else
_SMALL = 100 * 2**20  # up to which it may
_PIECE = 2**20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    size: int
    kind: str  # "file", "folder" or what it is instead
    token: Any


def is_archive(path: Path) -> bool:
    """Whether the file's name is that of an archive."""
    return path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, cache: Path, *, may_swell: bool = False) -> Path:
    """Unpacks an archive once, into a folder below `cache` that is named after its content.

    Args:
        archive: A tar or zip archive.
        cache: Folder for unpacked archives; made when it is missing.
        may_swell: Whether it may hold far more than its own size; for archives of our own.

    Returns:
        The folder; another call with the same content returns the same one.

    Raises:
        FinetuneError: If the archive cannot be read, or must not be unpacked.
    """
    with archive.open("rb") as file:
        folder = cache / hashlib.file_digest(file, "sha256").hexdigest()
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        _extract_whole(archive, partial, may_swell=may_swell)
        os.replace(partial, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _extract_whole(archive: Path, folder: Path, *, may_swell: bool) -> None:
    try:
        extract(archive, folder, may_swell=may_swell)
    except _DAMAGED as error:
        if isinstance(error, FinetuneError):
            raise
        raise FinetuneError(
            f"An archive is a whole {quote(ENDINGS)} file. `{archive}` cannot be read: {reason(error)}. Get it again, "
            "or unpack it yourself and name the folder."
        ) from error


def extract(path: Path, folder: Path, *, may_swell: bool = False) -> None:
    """Unpacks an archive into a folder.

    Args:
        path: A tar or zip archive.
        folder: An empty folder that exists.
        may_swell: Whether it may hold far more than its own size.

    Raises:
        FinetuneError: A member would land outside, is a link or a device, or the whole is too large; nothing is
            written then. A damaged archive raises what its reader does.
    """
    with _opened(path) as (archive, members):
        listed = _few(path, members, may_swell=may_swell)
        _read_checksum(archive)
        _check(path, folder, listed)
        for member in listed:
            _extract(archive, member, folder)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterable[_Member]]]:
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            yield archive, (_Member(i.filename, i.file_size, _zip_kind(i), i) for i in archive.infolist())
    else:
        with tarfile.open(path) as archive:
            yield archive, (_Member(m.name, m.size, _tar_kind(m), m) for m in archive)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:  # `zipfile.is_zipfile` also takes a tar archive whose last file is one
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _zip_kind(info: zipfile.ZipInfo) -> str:
    kind = info.external_attr >> 28  # of Unix: 4 folder, 8 file, 10 link
    return "folder" if info.is_dir() else "file" if kind in (0, 8) else "link"


def _tar_kind(info: tarfile.TarInfo) -> str:
    return (
        "file" if info.isreg() else "folder" if info.isdir() else "link" if info.islnk() or info.issym() else "device"
    )


def _few(path: Path, members: Iterable[_Member], *, may_swell: bool) -> list[_Member]:
    """Lists the members, which a compressed archive tells only while it is being read, within bounds."""
    allowed = MOST_BYTES if may_swell else min(MOST_BYTES, max(_SMALL, _SWELL * path.stat().st_size))
    listed, total = [], 0
    for member in members:
        listed.append(member)
        total += member.size
        if len(listed) > MOST_FILES or total > allowed:
            raise FinetuneError(
                f"An archive unpacks to {MOST_FILES:,} files and {allowed:,} bytes at most. `{path}` "
                f"({path.stat().st_size:,} bytes) holds more. Unpack it yourself, if you trust it, and give the folder."
            )
    return listed


def _read_checksum(archive: Any) -> None:
    """Reads on to the end of a compressed tar archive, where its checksum stands; zip checks each file by itself."""
    if isinstance(archive, tarfile.TarFile) and archive.fileobj:
        for _ in range(64):
            if not archive.fileobj.read(_PIECE):
                break


def _check(path: Path, folder: Path, members: list[_Member]) -> None:
    outside = [member.name for member in members if _leads_out(member.name)]
    if outside:
        raise FinetuneError(
            f"An archive unpacks into one folder. `{path}` would write outside of it: {quote(outside)}. Do not use it."
        )
    others = [f"{member.name} ({member.kind})" for member in members if member.kind not in ("file", "folder")]
    if others:
        raise FinetuneError(
            f"An archive holds files and folders. `{path}` holds something else: {quote(others)}. Pack the "
            "files themselves, e.g. `tar --dereference`."
        )
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise FinetuneError(
            f"An archive is unpacked into `{folder.parent}`. `{path}` needs {needed:,} bytes, and {free:,} are free "
            "there. Make room, set `TMPDIR` or `TFHUB_CACHE_DIR` to a larger disk, or unpack it yourself and give the "
            "folder."
        )


def _leads_out(name: str) -> bool:
    windows = PureWindowsPath(name)
    return ".." in windows.parts or bool(windows.drive or windows.root) or PurePosixPath(name).is_absolute()


def _extract(archive: Any, member: _Member, folder: Path) -> None:
    target = folder / member.name
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    is_zip = isinstance(archive, zipfile.ZipFile)
    with (
        archive.open(member.token) if is_zip else archive.extractfile(member.token) as source,
        target.open("xb") as out,
    ):
        _copy(source, out, member.size)


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """Copies what was announced, and not a byte more."""
    left = size
    while piece := source.read(min(_PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise ValueError("a file in the archive is larger than it says")
        out.write(piece)
    if left:
        raise ValueError("a file in the archive is shorter than it says")
