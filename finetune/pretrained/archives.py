"""Archives of weights, unpacked into a folder of their own: nothing gets out, nothing swells without bound."""

import shutil
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from finetune.errors import RestoreError, quote
from finetune.pretrained.signatures import is_zip

MOST_FILES = 10_000
MOST_BYTES = 64 * 2**30
_SWELL = 200  # weights hardly compress: an archive that unpacks to this many times its size holds something else
_SMALL = 100 * 2**20  # up to which it may
_PIECE = 2**20


class Unpacked:
    """A folder with the files of an archive; it is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    size: int
    kind: str  # "file", "folder" or what it is instead
    token: Any


def unpack(path: Path) -> Unpacked:
    """Unpacks a tar or zip archive into a temporary folder.

    Raises:
        RestoreError: A member would land outside, is a link or a device, or the whole is too large.
    """
    with _opened(path) as (archive, members):
        listed = _few(path, members)
        _read_checksum(archive)
        _check(path, listed)
        unpacked = Unpacked()
        for member in listed:
            _extract(archive, member, unpacked.folder)
    return unpacked


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterable[_Member]]]:
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            yield archive, (_Member(i.filename, i.file_size, _zip_kind(i), i) for i in archive.infolist())
    else:
        with tarfile.open(path) as archive:
            yield archive, (_Member(m.name, m.size, _tar_kind(m), m) for m in archive)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    kind = info.external_attr >> 28  # of Unix: 4 folder, 8 file, 10 link
    return "folder" if info.is_dir() else "file" if kind in (0, 8) else "link"


def _tar_kind(info: tarfile.TarInfo) -> str:
    return (
        "file" if info.isreg() else "folder" if info.isdir() else "link" if info.islnk() or info.issym() else "device"
    )


def _few(path: Path, members: Iterable[_Member]) -> list[_Member]:
    """Lists the members, which a compressed archive tells only while it is being read, within bounds."""
    allowed = min(MOST_BYTES, max(_SMALL, _SWELL * path.stat().st_size))
    listed, total = [], 0
    for member in members:
        listed.append(member)
        total += member.size
        if len(listed) > MOST_FILES or total > allowed:
            raise RestoreError(
                f"An archive of weights unpacks to {MOST_FILES:,} files and {allowed:,} bytes at most. `{path}` "
                f"({path.stat().st_size:,} bytes) holds more. Unpack it yourself, if you trust it, and give the folder."
            )
    return listed


def _read_checksum(archive: Any) -> None:
    """Reads on to the end of a compressed tar archive, where its checksum stands; zip checks each file by itself."""
    if isinstance(archive, tarfile.TarFile) and archive.fileobj:
        for _ in range(64):
            if not archive.fileobj.read(_PIECE):
                break


def _check(path: Path, members: list[_Member]) -> None:
    outside = [member.name for member in members if _leads_out(member.name)]
    if outside:
        raise RestoreError(
            f"An archive unpacks into one folder. `{path}` would write outside of it: {quote(outside)}. Do not use it."
        )
    others = [f"{member.name} ({member.kind})" for member in members if member.kind not in ("file", "folder")]
    if others:
        raise RestoreError(
            f"An archive of weights holds files and folders. `{path}` holds something else: {quote(others)}. Pack the "
            "files themselves, e.g. `tar --dereference`."
        )
    needed, free = sum(member.size for member in members), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise RestoreError(
            f"An archive is unpacked into `{tempfile.gettempdir()}`. `{path}` needs {needed:,} bytes, and {free:,} are "
            "free. Set `TMPDIR` to a larger disk, or unpack it yourself and give the folder."
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
