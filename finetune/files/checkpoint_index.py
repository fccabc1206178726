"""Reads the index of a TensorFlow checkpoint as data, before TensorFlow does: over a shape that lies it takes memory
for it, or ends the process.

The index of a checkpoint in the second version of the format is a table of LevelDB: blocks of keys and values, each
followed by the kind of its compression (none) and a checksum; a block that lists the blocks; and at the end where that
is. The values are the records `BundleEntryProto`: type, shape, file, place and size of a tensor.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

from finetune.files.size_limits import check_header

_FOOTER_BYTES = 48
_MOST_ELEMENTS = 2**48  # of a tensor; TensorFlow ends the process where their number needs more than 63 bits
_MOST_FILES = 100_000
_NUMBERS = (
    *(tf.bool, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.complex64, tf.complex128),
)


def check_index(path: Path) -> None:
    """Checks that each tensor of an index lies in the files that are there.

    Args:
        path: The index file; its data files are beside it.

    Raises:
        ValueError: The index is damaged, or says of a tensor what cannot be.
        FinetuneError: It is too long.
    """
    check_header(path, path.stat().st_size)
    entries = _entries(path.read_bytes())
    key, value = next(entries, (b"no header", b""))
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
    count = header.num_shards
    if key or not 0 < count < _MOST_FILES:
        raise ValueError(f"its index names {count:,} data files")
    prefix = str(path.with_suffix(""))
    files = [Path(f"{prefix}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    for key, value in entries:
        _check_entry(key.decode("utf-8", "replace"), tensor_bundle_pb2.BundleEntryProto.FromString(value), sizes)


def _check_entry(name: str, entry: Any, sizes: Sequence[int]) -> None:
    """Raises a ValueError where an entry says of a tensor what cannot be, given the sizes of the data files."""
    shape = [dim.size for dim in entry.shape.dim]
    if entry.shape.unknown_rank or len(shape) > 254 or min(shape, default=0) < 0 or math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError(f"its index gives `{name}` the shape {tuple(shape)}")
    try:
        dtype = tf.as_dtype(entry.dtype)
    except TypeError:
        raise ValueError(f"its index gives `{name}` the type {entry.dtype}, which does not exist") from None
    if not 0 <= entry.shard_id < len(sizes):
        raise ValueError(f"its index puts `{name}` into file {entry.shard_id} of {len(sizes)}")
    begin, end, size = entry.offset, entry.offset + entry.size, sizes[entry.shard_id]
    if begin < 0 or end < begin or end > size:
        raise ValueError(f"its index puts `{name}` at bytes {begin:,} to {end:,} of a file of {size:,}")
    promised = math.prod(shape) * dtype.size
    # A variable in parts has an entry for each; texts and tables are as long as `size` says.
    if not entry.slices and dtype in _NUMBERS and promised != entry.size:
        raise ValueError(f"its index gives `{name}` {promised:,} bytes by its shape, and {entry.size:,} in its file")
    if entry.slices and promised > sum(sizes):
        raise ValueError(f"its index gives `{name}` {promised:,} bytes by its shape, and its files have {sum(sizes):,}")


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table of LevelDB."""
    if len(data) < _FOOTER_BYTES:
        raise ValueError("its index is cut short")
    at = len(data) - _FOOTER_BYTES
    for _ in range(2):  # place and size of a block without entries that matter
        _, at = _varint(data, at)
    place, at = _varint(data, at)
    size, at = _varint(data, at)
    for _, handle in _block(data, place, size):
        start, at = _varint(handle, 0)
        length, at = _varint(handle, at)
        yield from _block(data, start, length)


def _block(data: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of a block; a key shares its first bytes with the key before it."""
    if place + size + 5 > len(data) or size < 4:
        raise ValueError("its index is cut short")
    if data[place + size]:
        raise ValueError("its index is compressed, as TensorFlow never writes it")
    block = data[place : place + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("its index is damaged")
        key, at = key[:shared] + block[at : at + own], at + own
        yield key, block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, the lowest first, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    raise ValueError("its index is damaged")
