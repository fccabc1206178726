"""Unpacks archives safely: into a folder named after their content, within bounds.

Archives come from the network. No file is written outside the folder, no link or device is made, and neither the number
of files nor their size may exceed what a model needs.
"""

import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from finetune.errors import FinetuneError, quote, reason
from finetune.files.bounded_streams import bounded_stream
from finetune.files.private_folder import is_unchanged, private_folder, write_manifest
from finetune.files.size_limits import MOST_BYTES, VARIABLE, allowed_bytes, check_zip_list
from finetune.files.temporary_folders import TemporaryFolder
from finetune.machine_failures import raise_machine_failure

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
MOST_FILES = 10_000
_CHUNK = 2**20  # bytes read at a time
# What the readers raise on damaged archives; `RuntimeError` and `NotImplementedError` for encrypted zip files.
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, RuntimeError, NotImplementedError),
)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes of the unpacked file, as the archive says.
        kind: `file`, `folder`, `link` or `device`.
        info: The entry as `zipfile` or `tarfile` describes it.
    """

    name: str
    size: int
    kind: str
    info: Any


def is_archive(path: Path) -> bool:
    """Returns whether the file has the name of an archive."""
    return path.name.lower().endswith(ENDINGS)


def unpack(archive: Path, cache: Path, *, trusted: bool = False) -> Path:
    """Unpacks an archive once, into a folder below `cache` that is named after its content.

    Args:
        archive: A tar or zip archive.
        cache: Folder for unpacked archives, which nobody else may write to; made when it is missing.
        trusted: Whether it may unpack to far more than its own size; for archives that this package wrote.

    Returns:
        The folder; another call with the same content returns the same one.

    Raises:
        FinetuneError: If the archive cannot be read, `extract` refuses it, or the cache is somebody else's.
    """
    with archive.open("rb") as file:
        folder = cache / hashlib.file_digest(file, "sha256").hexdigest()
    private_folder(cache)
    if os.path.lexists(folder):
        if is_unchanged(folder):
            return folder
        shutil.rmtree(folder)  # incomplete: cleaners of temporary folders remove single files
    # The folder appears under its name only when it is complete: other processes may be unpacking the same archive.
    unpacking = TemporaryFolder(cache, ".unpacking-")
    partial = unpacking.path
    try:
        _extract_readable(archive, partial, trusted=trusted)
        write_manifest(partial, folder.with_suffix(".json"))
        os.replace(partial, folder)
    except OSError:
        if not is_unchanged(folder):  # otherwise another process was faster
            raise
    finally:
        unpacking.remove()
    return folder


def _extract_readable(archive: Path, folder: Path, *, trusted: bool) -> None:
    """Does what `extract` does, and turns the errors of the readers into one that says what to do."""
    try:
        extract(archive, folder, trusted=trusted)
    except _DAMAGED as error:
        raise_machine_failure(error, f"Unpacking `{archive}`")
        raise FinetuneError(
            f"An archive is a complete {quote(ENDINGS)} file. `{archive}` cannot be read: {reason(error)}. Copy "
            "or download it again, or unpack it yourself and give the folder."
        ) from error


def extract(path: Path, folder: Path, *, trusted: bool = False) -> None:
    """Unpacks an archive into a folder.

    Args:
        path: A tar or zip archive.
        folder: An empty folder that exists.
        trusted: Whether it may unpack to far more than its own size.

    Raises:
        FinetuneError: If a file would be written outside of the folder, an entry is a link or a device, or the whole is
            too large. Nothing has been written then. A damaged archive raises what its reader raises.
    """
    with _opened(path) as (archive, members):
        # The order matters: everything is listed, verified and checked before the first byte is written.
        listed = _list_within_bounds(path, members, trusted=trusted)
        _verify_checksum(archive)
        _check(path, folder, listed)
        for member in listed:
            _extract(archive, member, folder)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterable[_Member]]]:
    if _is_zip(path):
        check_zip_list(path)
        with zipfile.ZipFile(path) as archive:
            yield archive, (_Member(i.filename, i.file_size, _zip_kind(i), i) for i in archive.infolist())
    else:
        with bounded_stream(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive, (_Member(m.name, m.size, _tar_kind(m), m) for m in archive)


def _is_zip(path: Path) -> bool:
    # `zipfile.is_zipfile` looks at the end of the file, and is true of a tar archive whose last file is a zip archive.
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 28  # the type bits of Unix: 4 folder, 8 file, 10 link; 0 where nothing was stored
    return "folder" if info.is_dir() else "file" if mode in (0, 8) else "link"


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg() or info.isdir():
        return "file" if info.isreg() else "folder"
    return "link" if info.islnk() or info.issym() else "device"


def _list_within_bounds(path: Path, members: Iterable[_Member], *, trusted: bool) -> list[_Member]:
    """Lists the entries and stops at the first too many: listing a compressed tar archive unpacks all of it."""
    allowed = MOST_BYTES if trusted else allowed_bytes(path.stat().st_size)
    listed, total = [], 0
    for member in members:
        listed.append(member)
        total += member.size
        if len(listed) > MOST_FILES or total > allowed:
            raise FinetuneError(
                f"An archive may unpack to {MOST_FILES:,} files and {allowed:,} bytes. `{path}` "
                f"({path.stat().st_size:,} bytes) has more. If you trust it, unpack it yourself and give the folder, "
                f"or raise the limit with the environment variable `{VARIABLE}=80GB`."
            )
    return listed


def _verify_checksum(archive: Any) -> None:
    """Reads a compressed tar archive to its end, where its checksum is; zip has a checksum for each file."""
    if isinstance(archive, tarfile.TarFile) and archive.fileobj:
        for _ in range(64):  # the end of a tar archive is a few blocks of zeros; more would be a decompression bomb
            if not archive.fileobj.read(_CHUNK):
                break


def _check(path: Path, folder: Path, members: list[_Member]) -> None:
    outside = [member.name for member in members if _is_outside(member.name)]
    if outside:
        raise FinetuneError(
            f"An archive unpacks into one folder. `{path}` would write outside of it: {quote(outside)}. Do not use it."
        )
    others = [f"{member.name} ({member.kind})" for member in members if member.kind not in ("file", "folder")]
    if others:
        raise FinetuneError(
            f"An archive contains files and folders only. `{path}` holds something else: {quote(others)}. Pack "
            "the files themselves, e.g. with `tar --dereference`."
        )
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise FinetuneError(
            f"An archive is unpacked into `{folder.parent}`. `{path}` needs {needed:,} bytes there, and {free:,} are "
            "free. Make room, set `TMPDIR` or `TFHUB_CACHE_DIR` to a folder on a larger disk, or unpack it yourself "
            "and give the folder."
        )


def _is_outside(name: str) -> bool:
    # Read as Windows reads it too, whose separators and drives a Unix path may contain as ordinary characters.
    path = PureWindowsPath(name)
    return ".." in path.parts or bool(path.drive or path.root) or PurePosixPath(name).is_absolute()


def _extract(archive: Any, member: _Member, folder: Path) -> None:
    target = folder / member.name
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    is_zip = isinstance(archive, zipfile.ZipFile)
    with (
        archive.open(member.info) if is_zip else archive.extractfile(member.info) as source,
        target.open("xb") as out,
    ):
        _copy(source, out, member.size)


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """Copies `size` bytes, and fails where the archive has more or fewer: only announced bytes were checked."""
    left = size
    while piece := source.read(min(_CHUNK, left + 1)):
        left -= len(piece)
        if left < 0:
            raise ValueError("a file in the archive is larger than it says")
        out.write(piece)
    if left:
        raise ValueError("a file in the archive is shorter than it says")
