"""Recognises file formats by the first and last bytes of a file, whatever its name.

Downloads and caches give files names that say nothing (`download`, a hash), and users rename files. A file's name only
counts where the content cannot decide: for a zip archive too damaged to list.
"""

import zipfile
from pathlib import Path

from finetune.files.size_limits import check_header, check_zip_list
from finetune.files.zip_archives import zip_archive

_SSTABLE_END = bytes.fromhex("57fb808b247547db")  # magic number of LevelDB tables, little endian
_LONGEST_HEADER = 100_000_000  # bytes; the limit in the safetensors specification


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does, complete or not."""
    return _start(path, 8) == b"\x89HDF\r\n\x1a\n"


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive does, complete or not."""
    return _start(path, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def is_npz(path: Path) -> bool:
    """Whether the file is a zip archive of nothing but NumPy arrays; a damaged archive counts by its name."""
    if not is_zip(path):
        return False
    try:
        names = zip_members(path)
    except zipfile.BadZipFile:
        return path.suffix == ".npz"
    return bool(names) and all(name.endswith(".npy") for name in names)


def is_pickle(path: Path) -> bool:
    """Whether the file is a Python pickle, or a zip archive with a pickle, as `torch.save` writes it."""
    if not is_zip(path):
        start = _start(path, 2)
        return start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")  # PROTO, then its version
    try:
        return any(name.rpartition("/")[2] == "data.pkl" for name in zip_members(path))
    except zipfile.BadZipFile:
        return path.suffix in (".pt", ".pth", ".bin")


def zip_members(path: Path) -> list[str]:
    """Returns the names of the files in a zip archive, without its folders.

    Raises:
        zipfile.BadZipFile: The archive is damaged.
        FinetuneError: It lists too many files.
    """
    check_zip_list(path)
    with zip_archive(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def is_tar(path: Path) -> bool:
    """Whether the file is a tar archive, or is compressed by gzip, bzip2 or xz (which weight files never are)."""
    start = _start(path, 6)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00":
        return True
    with path.open("rb") as file:
        file.seek(257)  # an uncompressed tar has its magic number behind the first file's name, mode and size
        return file.read(5) == b"ustar"


def is_checkpoint_index(path: Path) -> bool:
    """Whether the file ends as the index of a TensorFlow checkpoint does.

    The index is a LevelDB table. So is a complete checkpoint in the first version of the format (`Saver` with
    `write_version=V1`), which has no data files.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        return file.read() == _SSTABLE_END


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors does, complete or not.

    A safetensors file begins with the length of its header (8 bytes, little endian), followed by the header in JSON.
    """
    start = _start(path, 9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def is_shard_index(path: Path) -> bool:
    """Whether the file is the JSON index of weights in several files: it maps each weight to its file."""
    if path.suffix != ".json":
        return False
    check_header(path, path.stat().st_size)
    return b'"weight_map"' in path.read_bytes()


def is_saved_model(path: Path) -> bool:
    """Whether the file is the `saved_model.pb` of a SavedModel's folder."""
    return path.name in ("saved_model.pb", "saved_model.pbtxt")


def _start(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)
