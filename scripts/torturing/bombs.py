"""Files of a few megabytes at most that ask for gigabytes, for each kind of file that finetune reads.

`BOMBS` maps a name to a function that writes the file into a folder and returns its path; `HOW` says which command
reads it. `measure` runs the command and returns the peak of its memory.
"""

import gzip
import io
import json
import lzma
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import wave
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

GIGABYTES = 3  # that a bomb asks for
_MEGABYTE = bytes(2**20)


def _zeros(write: Callable[[bytes], object]) -> None:
    for _ in range(GIGABYTES * 1024):
        write(_MEGABYTE)


# -- Archives ---------------------------------------------------------------------------------------------------------


def zip_of_zeros(folder: Path) -> Path:
    path = folder / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model.h5", "w", force_zip64=True) as member,
    ):
        _zeros(member.write)
    return path


def zip_with_overlapping_entries(folder: Path) -> Path:
    """Its list of files names the same compressed bytes a thousand times."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(3 * 2**20))
    raw = inner.getvalue()
    start = raw.index(b"PK\x01\x02")
    entry = raw[start : raw.index(b"PK\x05\x06")]
    listed, count = b"", 1024
    for number in range(count):
        name = f"{number:04d}".encode()
        listed += entry[:28] + struct.pack("<H", len(name)) + entry[30:46] + name + entry[47:]
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(listed), start, 0)
    path = folder / "overlap.zip"
    path.write_bytes(raw[:start] + listed + end)
    return path


def zip_with_millions_of_entries(folder: Path) -> Path:
    """A list of files as long as the format of 64 bits allows in a file of 80 MB."""
    count, name = 1_600_000, b"abcd"
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0) + name
    size = count * len(entry)
    zip64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, 30)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 30 + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = folder / "entries.zip"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26) + entry * count + zip64 + locator + end)
    return path


def _tar_header(name: bytes, size: int, kind: bytes) -> bytes:
    octal = b"%011o\0" % size
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + octal + b"00000000000\0" + b" " * 8)
    header += kind + bytes(100) + b"ustar\x0000" + bytes(247)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _tar_with_header_of_gigabytes(path: Path, kind: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(_tar_header(b"PaxHeader", GIGABYTES * 2**30, kind))
        _zeros(file.write)
        file.write(_tar_header(b"model.h5", 0, b"0") + bytes(1024))
    return path


def tar_with_a_pax_header_of_gigabytes(folder: Path) -> Path:
    return _tar_with_header_of_gigabytes(folder / "pax.tar.gz", b"x")


def tar_with_a_name_of_gigabytes(folder: Path) -> Path:
    return _tar_with_header_of_gigabytes(folder / "name.tar.gz", b"L")


def tar_of_zeros(folder: Path) -> Path:
    path = folder / "zeros.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(_tar_header(b"model.h5", GIGABYTES * 2**30, b"0"))
        _zeros(file.write)
        file.write(bytes(1024))
    return path


def xz_with_a_large_dictionary(folder: Path) -> Path:
    """The archive is 20 MB: its limit is 4 GB, and the dictionary alone takes 1.5 GB of that."""
    path = folder / "dictionary.tar.xz"
    # The encoder takes ten times the dictionary, so its size is written into the header of a block afterwards.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    noise = np.random.default_rng(0).bytes(20 * 2**20)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in (("noise", noise), ("zeros", bytes(1700 * 2**20))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    raw = bytearray(lzma.compress(tar.getbuffer(), lzma.FORMAT_XZ, filters=filters))
    # The header of the first block is at 12: size, flags, id of the filter (0x21), size of properties (1), dictionary.
    length = (raw[12] + 1) * 4
    assert raw[14:16] == b"\x21\x01", raw[12:24].hex()
    raw[16] = 37  # (2 + 37 % 2) * 2 ** (37 // 2 + 11) bytes
    raw[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(raw[12 : 12 + length - 4]))
    path.write_bytes(raw)
    return path


# -- Weights ----------------------------------------------------------------------------------------------------------


def _npy_header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz_that_promises_terabytes(folder: Path) -> Path:
    path = folder / "promise.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test", "x"):
            archive.writestr(f"{name}.npy", _npy_header("(1000000, 1000000)") + bytes(64))
    return path


def npz_that_promises_gigabytes(folder: Path) -> Path:
    path = folder / "some.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", _npy_header("(750000, 1000)") + bytes(64))
    return path


def npz_of_zeros(folder: Path) -> Path:
    path = folder / "zeros.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("kernel.npy", "w", force_zip64=True) as member,
    ):
        member.write(_npy_header(f"({GIGABYTES * 2**28},)"))
        _zeros(member.write)
    return path


def keras_archive_with_a_long_config(folder: Path) -> Path:
    path = folder / "config.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        with archive.open("config.json", "w", force_zip64=True) as member:
            _zeros(member.write)
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            file["layers/d/vars/0"] = np.ones(3)
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def keras_archive_with_a_nested_config(folder: Path) -> Path:
    path = folder / "nested.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"module": ' * 100_000 + "1" + "}" * 100_000)
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            file["layers/d/vars/0"] = np.ones(3)
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def keras_archive_that_asks_for_a_huge_layer(folder: Path) -> Path:
    """Its configuration has a layer of 12 GB; its weights have three numbers."""
    import keras

    path = folder / "layer.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="d")]).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(b'"units": 3', b'"units": 1000000000')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def hdf5_that_declares_gigabytes(folder: Path) -> Path:
    path = folder / "declared.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/d/vars/0", shape=(GIGABYTES * 2**28,), dtype="f4", chunks=(2**20,))
    return path


def hdf5_compressed(folder: Path) -> Path:
    path = folder / "compressed.weights.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "layers/d/vars/0", shape=(GIGABYTES * 2**28,), dtype="f4", chunks=(2**22,), compression="gzip"
        )
        for start in range(0, made.shape[0], 2**24):
            made[start : start + 2**24] = 0
    return path


def _safetensors(path: Path, header: bytes, values: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + values)
    return path


def safetensors_with_a_long_header(folder: Path) -> Path:
    entry = '"{}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'
    header = "{" + ",".join(entry.format(n) for n in range(1_400_000)) + "}"
    return _safetensors(folder / "header.safetensors", header.encode())


def safetensors_nested(folder: Path) -> Path:
    return _safetensors(folder / "nested.safetensors", b'{"a": ' + b"[" * 1_000_000)


def safetensors_with_overlapping_offsets(folder: Path) -> Path:
    size = 2**20
    entries = {f"t{n}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]} for n in range(4096)}
    return _safetensors(folder / "overlap.safetensors", json.dumps(entries).encode(), bytes(size))


def safetensors_with_offsets_out_of_range(folder: Path) -> Path:
    entry = {"t": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}
    return _safetensors(folder / "range.safetensors", json.dumps(entry).encode(), bytes(64))


def safetensors_whose_shape_overflows(folder: Path) -> Path:
    entry = {"t": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}
    return _safetensors(folder / "overflow.safetensors", json.dumps(entry).encode(), bytes(64))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _crc32c(data: bytes) -> int:
    """Returns the masked checksum of LevelDB's tables."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _field(number: int, value: bytes | int) -> bytes:
    """A field of a record of protobuf: a number, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & 2**64 - 1)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A table of LevelDB with a single block of entries."""

    def block(entries: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
        restarts = []
        at = 0
        for key, value in entries:
            restarts.append(at)
            at += len(_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value)
        body += struct.pack(f"<{len(restarts) or 1}I", *(restarts or [0])) + struct.pack("<I", len(restarts) or 1)
        return body + b"\0" + struct.pack("<I", _crc32c(body + b"\0"))

    data, meta = block(entries), block([])
    index = block([(b"x", _varint(0) + _varint(len(data) - 5))])
    handles = _varint(len(data)) + _varint(len(meta) - 5) + _varint(len(data) + len(meta)) + _varint(len(index) - 5)
    return data + meta + index + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def checkpoint_index(folder: Path, shape: tuple[int, ...], size: int, name: str) -> Path:
    """Writes a TensorFlow checkpoint of a single float32 tensor `w` whose index says what it likes."""
    dims = b"".join(_field(2, _field(1, each)) for each in shape)
    entry = _field(1, 1) + _field(2, dims) + _field(5, size)  # dtype, shape, size; shard and offset are 0
    header = _field(1, 1) + _field(3, _field(1, 1))
    path = folder / f"{name}.index"
    path.write_bytes(_table([(b"", header), (b"w", entry)]))
    (folder / f"{name}.data-00000-of-00001").write_bytes(bytes(64))
    return path


def single_file_checkpoint(folder: Path, shape: tuple[int, ...], count: int, name: str, *, dtype: int = 1) -> Path:
    """Writes a checkpoint of TensorFlow's first format: a tensor `w` of some shape, and so many float32 values."""
    dims = b"".join(_field(2, _field(1, each)) for each in shape)
    whole = b"".join(_field(1, b"") for _ in shape)  # an empty extent for each axis
    meta = _field(1, b"w") + _field(2, dims) + _field(3, dtype) + _field(4, whole)
    values = _field(5, bytes(4 * count))
    part = _field(1, b"w") + _field(2, whole) + _field(3, values)
    key = b"\0w\0\1" + (bytes([1, len(shape)]) if shape else b"\0") + b"\x80\x7f" * len(shape)
    path = folder / name
    path.write_bytes(_table([(b"", _field(1, _field(1, meta))), (key, _field(2, part))]))
    return path


def checkpoint_of_tensorflow_1_that_declares_gigabytes(folder: Path) -> Path:
    return single_file_checkpoint(folder, (GIGABYTES * 2**28,), 16, "first")


def checkpoint_that_declares_gigabytes(folder: Path) -> Path:
    return checkpoint_index(folder, (GIGABYTES * 2**28,), 64, "declares")


def checkpoint_that_declares_exabytes(folder: Path) -> Path:
    return checkpoint_index(folder, (2**40, 2**20), 64, "exa")


def checkpoint_with_a_negative_shape(folder: Path) -> Path:
    return checkpoint_index(folder, (-4,), 16, "negative")


def checkpoint_whose_shape_overflows(folder: Path) -> Path:
    return checkpoint_index(folder, (2**62, 2**62), 64, "overflow")


def checkpoint_beyond_its_file(folder: Path) -> Path:
    return checkpoint_index(folder, (2**20,), 2**22, "beyond")


def shard_index_nested(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text('{"weight_map": ' + "[" * 5_000_000)
    return path


# -- Data -------------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, colour: int, more: bytes = b"") -> bytes:
    packer, parts = zlib.compressobj(9), []
    row = bytes(1 + width * (3 if colour == 2 else 1))
    parts += [packer.compress(row) for _ in range(height)]
    head = struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)
    body = b"".join(parts) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + more + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def image_folder(folder: Path, name: str, content: bytes) -> Path:
    from PIL import Image

    for kind in ("cat", "dog"):
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            Image.new("RGB", (8, 8)).save(folder / "images" / kind / f"{number}.png")
    (folder / "images" / "cat" / name).write_bytes(content)
    return folder / "images"


def png_of_a_gigapixel(folder: Path) -> Path:
    return image_folder(folder, "bomb.png", _png(32_000, 32_000, 2))


def png_just_below_the_limit_of_pillow(folder: Path) -> Path:
    return image_folder(folder, "bomb.png", _png(13_000, 13_000, 2))


def png_with_a_profile_of_gigabytes(folder: Path) -> Path:
    packer, parts = zlib.compressobj(9), []
    _zeros(lambda data: parts.append(packer.compress(data)))
    profile = b"icc\0\0" + b"".join(parts) + packer.flush()
    return image_folder(folder, "bomb.png", _png(8, 8, 2, _chunk(b"iCCP", profile)))


def gif_with_a_huge_screen(folder: Path) -> Path:
    head = b"GIF89a" + struct.pack("<2H3B", 65535, 65535, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"
    return image_folder(folder, "bomb.gif", head + frame)


def tiff_of_a_gigapixel(folder: Path) -> Path:
    from PIL import Image

    made = io.BytesIO()
    Image.new("1", (32, 32)).save(made, "TIFF", compression="tiff_deflate")
    content = made.getvalue().replace(struct.pack("<H", 32), struct.pack("<H", 60_000))
    return image_folder(folder, "bomb.jpg", content)


def sound_folder(folder: Path, content: bytes) -> Path:
    for kind in ("cat", "dog"):
        (folder / "sounds" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            with wave.open(str(folder / "sounds" / kind / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 64, "NONE", ""))
                file.writeframes(bytes(128))
    (folder / "sounds" / "cat" / "bomb.wav").write_bytes(content)
    import keras

    parts = [keras.Input((64, 1)), keras.layers.Conv1D(2, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential(parts).save(folder / "sounds.keras")
    return folder / "sounds"


def _wav(rate: int, channels: int, samples: bytes, declared: int | None = None) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 0, 2 * channels, 16)
    size = len(samples) if declared is None else declared
    return struct.pack("<4sI4s", b"RIFF", 0, b"WAVE") + form + struct.pack("<4sI", b"data", size) + samples


def wav_that_declares_gigabytes(folder: Path) -> Path:
    return sound_folder(folder, _wav(8000, 1, bytes(64), 0x7FFFFE00))


def wav_with_a_format_of_gigabytes(folder: Path) -> Path:
    """A sparse file: it takes no room on the disk, and its second chunk has 3 GB."""
    path = sound_folder(folder, b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", GIGABYTES * 2**30))
    with (path / "cat" / "bomb.wav").open("rb+") as file:
        file.truncate(GIGABYTES * 2**30 + 4096)
    return path


def wav_of_an_absurd_rate(folder: Path) -> Path:
    return sound_folder(folder, _wav(4_294_967_295, 1, bytes(2**20)))


def parquet_of_a_run(folder: Path) -> Path:
    """A column of 400 million equal numbers, which Parquet keeps as a run: a value and a count."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "run.parquet"
    part = pa.array(np.zeros(10_000_000, np.int64))
    table = pa.table({"a": pa.chunked_array([part] * 40), "label": pa.chunked_array([part] * 40)})
    parquet.write_table(table, path, row_group_size=400_000_000, compression="zstd", use_dictionary=True)
    return path


def parquet_of_a_long_text(folder: Path) -> Path:
    """A text of 64 kB, named by each of 50,000 rows."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "text.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, np.int32)), pa.array(["x" * 2**16]))
    label = pa.array(np.arange(50_000) % 2)
    parquet.write_table(pa.table({"a": texts, "label": label}), path, compression="zstd", store_schema=False)
    return path


def feather_of_zeros(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import feather

    path = folder / "zeros.feather"
    part = np.zeros(GIGABYTES * 2**26, np.int64)
    feather.write_feather(pa.table({"a": part, "label": part}), str(path), compression="zstd", chunksize=len(part))
    return path


def jsonl_nested(folder: Path) -> Path:
    path = folder / "nested.jsonl"
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + ', "label": 1}\n')
    return path


def csv_of_a_line(folder: Path) -> Path:
    """200 MB without a line break: a header of 100 million columns."""
    path = folder / "line.csv"
    path.write_bytes(b"a," * 20_000_000)
    return path


# -- Recipes ----------------------------------------------------------------------------------------------------------


def recipe_of_nested_aliases(folder: Path) -> Path:
    path = folder / "laughs.yaml"
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))
    return path


def recipe_of_merged_aliases(folder: Path) -> Path:
    path = folder / "merges.yaml"
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}, <<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    path.write_text("\n".join(lines))
    return path


def recipe_of_many_keys(folder: Path) -> Path:
    path = folder / "keys.yaml"
    path.write_text("".join(f"k{n}: 1\n" for n in range(90_000)))
    return path


def recipe_nested(folder: Path) -> Path:
    path = folder / "nested.yaml"
    path.write_text("a: " + "[" * 100_000)
    return path


def recipe_of_a_text(folder: Path) -> Path:
    """A text of 100 MB."""
    path = folder / "text.yaml"
    path.write_text('a: "' + "x" * 100_000_000 + '"')
    return path


def recipe_without_an_end(folder: Path) -> Path:
    """A sparse file of 3 GB."""
    path = folder / "sparse.yaml"
    with path.open("wb") as file:
        file.write(b"a: 1\n#")
        file.truncate(GIGABYTES * 2**30)
    return path


# -- Reading them -----------------------------------------------------------------------------------------------------

_RECIPE = """model: {{{model}}}
data: {{{data}}}
groups: [{{name: all, rest: true, optimizer: sgd, learning_rate: 1.0e-3}}]
train: {{epochs: 1, batch_size: 4, loss: sparse_categorical_crossentropy}}
"""
_CNN = "builder: finetune.examples.digits:small_cnn"


def _recipe(folder: Path, data: str, model: str = _CNN) -> list[str]:
    (folder / "recipe.yaml").write_text(_RECIPE.format(data=data, model=model))
    return ["data", "recipe.yaml"]


def command(name: str, path: Path) -> list[str]:
    """Returns the arguments of `finetune` that read a bomb."""
    folder = path.parent
    kind = name.partition("_")[0]
    if kind in ("png", "gif", "tiff"):
        return _recipe(folder, f"images: {path.name}, size: [8, 8], split: {{test: 0.3}}")
    if kind == "wav":
        data = f"audio: {path.name}, length: 64, sample_rate: 8000, split: {{test: 0.3}}"
        return _recipe(folder, data, "keras_file: sounds.keras")
    if kind in ("parquet", "feather", "jsonl", "csv"):
        return _recipe(folder, f"table: {path.name}, inputs: a, target: label, split: {{test: 0.3}}")
    if "promises" in name:
        return _recipe(folder, f"npz: {path.name}")
    if kind == "recipe":
        return ["check", path.name]
    if name.startswith("keras_archive"):
        np.savez(
            folder / "d.npz", x_train=np.ones((9, 3)), y_train=np.ones(9), x_test=np.ones((9, 3)), y_test=np.ones(9)
        )
        return _recipe(folder, "npz: d.npz", f"keras_file: {path.name}")
    return ["inspect", path.name]


@dataclass(frozen=True)
class Measured:
    """What reading a file took.

    Attributes:
        code: The exit code.
        said: The end of what was printed.
        peak: The most memory, in bytes.
        seconds: How long it took.
    """

    code: int
    said: str
    peak: int
    seconds: float


# Runs a command, writes the peak memory of its process in KiB to a file descriptor, and ends with its exit code. A
# process inherits the peak of the one that it is forked from, so a small one is in between.
_MEASURED = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
os.write(int(sys.argv[1]), str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
os._exit(code if code >= 0 else 128 - code)
"""


def measure(folder: Path, arguments: list[str], seconds: float = 120) -> Measured:
    """Runs `finetune` in a folder and measures it."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    reader, writer = os.pipe()
    small = [sys.executable, "-I", "-S", "-c", _MEASURED, str(writer)]
    with (folder / "said").open("w+") as said, os.fdopen(reader) as peak:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*small, sys.executable, "-m", "finetune", *arguments],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        took = time.monotonic() - begun
        said.seek(0)
        return Measured(process.returncode, said.read()[-2000:], int(peak.read() or 0) * 1024, took)


BOMBS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (
        *(zip_of_zeros, zip_with_overlapping_entries, zip_with_millions_of_entries),
        *(tar_with_a_pax_header_of_gigabytes, tar_with_a_name_of_gigabytes, tar_of_zeros, xz_with_a_large_dictionary),
        *(npz_that_promises_terabytes, npz_that_promises_gigabytes, npz_of_zeros),
        *(keras_archive_with_a_long_config, keras_archive_with_a_nested_config),
        keras_archive_that_asks_for_a_huge_layer,
        *(hdf5_that_declares_gigabytes, hdf5_compressed),
        *(safetensors_with_a_long_header, safetensors_nested, safetensors_with_overlapping_offsets),
        *(safetensors_with_offsets_out_of_range, safetensors_whose_shape_overflows),
        *(checkpoint_that_declares_gigabytes, checkpoint_that_declares_exabytes, checkpoint_with_a_negative_shape),
        *(checkpoint_whose_shape_overflows, checkpoint_beyond_its_file, shard_index_nested),
        checkpoint_of_tensorflow_1_that_declares_gigabytes,
        *(png_of_a_gigapixel, png_just_below_the_limit_of_pillow, png_with_a_profile_of_gigabytes),
        *(gif_with_a_huge_screen, tiff_of_a_gigapixel),
        *(wav_that_declares_gigabytes, wav_with_a_format_of_gigabytes, wav_of_an_absurd_rate),
        *(parquet_of_a_run, parquet_of_a_long_text, feather_of_zeros, jsonl_nested, csv_of_a_line),
        *(recipe_of_nested_aliases, recipe_of_merged_aliases, recipe_of_many_keys, recipe_nested, recipe_of_a_text),
        recipe_without_an_end,
    )
}


def make(name: str, folder: Path) -> Path:
    """Makes a bomb in a process of its own: a process begins with the peak of that which starts it."""
    code = f"from torturing.bombs import BOMBS; from pathlib import Path; print(BOMBS[{name!r}](Path({str(folder)!r})))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])
