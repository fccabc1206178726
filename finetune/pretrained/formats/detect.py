"""What kind of file it is, told by its first and last bytes alone."""

import zipfile
from pathlib import Path

_SSTABLE_END = bytes.fromhex("57fb808b247547db")
_LONGEST_HEADER = 100_000_000  # of safetensors, by its own specification


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does, whole or not."""
    return _start(path, 8) == b"\x89HDF\r\n\x1a\n"


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive does, whole or not."""
    return _start(path, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def is_npz(path: Path) -> bool:
    """Whether the file is a zip archive of NumPy arrays alone; a damaged one counts by its name."""
    if not is_zip(path):
        return False
    try:
        names = zip_members(path)
    except zipfile.BadZipFile:
        return path.suffix == ".npz"
    return bool(names) and all(name.endswith(".npy") for name in names)


def is_pickle(path: Path) -> bool:
    """Whether it is a Python pickle, or a zip archive with one, as PyTorch writes them."""
    if not is_zip(path):
        start = _start(path, 2)
        return start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
    try:
        return any(name.rpartition("/")[2] == "data.pkl" for name in zip_members(path))
    except zipfile.BadZipFile:
        return path.suffix in (".pt", ".pth", ".bin")


def zip_members(path: Path) -> list[str]:
    """Returns the names of the files in a zip archive.

    Raises:
        zipfile.BadZipFile: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except (ValueError, NotImplementedError, OverflowError, EOFError) as error:
        raise zipfile.BadZipFile(str(error)) from error


def is_tar(path: Path) -> bool:
    """Whether the file is a tar archive, compressed or not; a compressed one counts by its beginning, whole or not."""
    start = _start(path, 6)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00":
        return True
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def is_checkpoint_index(path: Path) -> bool:
    """Whether the file ends as a checkpoint's index does (or a whole checkpoint of TensorFlow before 0.12)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        return file.read() == _SSTABLE_END


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors does: the length of a header, and a header in JSON; whole or not."""
    start = _start(path, 9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def is_shard_index(path: Path) -> bool:
    """Whether it is the JSON file that tells which of several files holds which weight."""
    return path.suffix == ".json" and b'"weight_map"' in path.read_bytes()


def is_saved_model(path: Path) -> bool:
    """Whether it is the file that makes a folder a SavedModel."""
    return path.name in ("saved_model.pb", "saved_model.pbtxt")


def _start(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)
