"""Reads what a TensorFlow checkpoint says of its tensors as data, before TensorFlow does: over a shape that lies it
takes memory for it, or ends the process.

The index of a checkpoint in the second version of the format is a table of LevelDB: blocks of keys and values, each
followed by the kind of its compression (none) and a checksum; a block that lists the blocks; and at the end where that
is. The values are the records `BundleEntryProto`: type, shape, file, place and size of a tensor.

A checkpoint in the first version of the format is a single such table. Its first value lists the tensors, each with its
shape and the slices it was saved in; each other value has the numbers of a slice.
"""

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2
from tensorflow.core.util import saved_tensor_slice_pb2

from finetune.files.size_limits import check_header

_FOOTER_BYTES = 48
_MOST_ELEMENTS = 2**48  # of a tensor; TensorFlow ends the process where their number needs more than 63 bits
_MOST_FILES = 100_000
_SLICES = getattr(saved_tensor_slice_pb2, "SavedTensorSlices")  # noqa: B009 - a class that TensorFlow's stubs lack
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


def check_single_file(path: Path) -> None:
    """Checks that a checkpoint in the first version of the format has the numbers that it promises.

    Args:
        path: The only file of the checkpoint.

    Raises:
        ValueError: It is damaged, or says of a tensor what cannot be.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entries = _entries(data)
        key, value = next(entries, (b"no header", b""))
        if key:
            raise ValueError("its list of tensors is missing")
        shapes: dict[str, tuple[int, ...]] = {}
        for tensor in _SLICES.FromString(value).meta.tensor:
            shapes[tensor.name] = _checked_shape(tensor.name, tensor.shape)
            _checked_type(tensor.name, tensor.type)
        held: Counter[str] = Counter()
        for _, value in entries:
            part = _SLICES.FromString(value).data
            if part.name not in shapes or len(part.slice.extent) != len(shapes[part.name]):
                raise ValueError(f"it has numbers of `{part.name}`, which is not in its list of tensors")
            # An extent without a length is the whole of its axis.
            sizes = zip(part.slice.extent, shapes[part.name], strict=True)
            count = math.prod(extent.length if extent.HasField("length") else size for extent, size in sizes)
            if count != (there := _values_in(part.data)):
                raise ValueError(f"it promises {count:,} values of `{part.name}`, and has {there:,}")
            held[part.name] += count
    for name, shape in shapes.items():
        if held[name] != math.prod(shape):
            raise ValueError(f"it gives `{name}` {math.prod(shape):,} values by its shape, and has {held[name]:,}")


def _values_in(data: Any) -> int:
    """Returns how many values a `TensorProto` has, in the list of its type; it does not name the type."""
    lists = [(field.name, len(values)) for field, values in data.ListFields() if field.name.endswith("_val")]
    return sum(count // 2 if "complex" in name else count for name, count in lists)


def _checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(dim.size for dim in shape.dim)
    if shape.unknown_rank or len(sizes) > 254 or min(sizes, default=0) < 0 or math.prod(sizes) > _MOST_ELEMENTS:
        raise ValueError(f"its index gives `{name}` the shape {sizes}")
    return sizes


def _checked_type(name: str, number: int) -> tf.DType:
    try:
        return tf.as_dtype(number)
    except TypeError:
        raise ValueError(f"its index gives `{name}` the type {number}, which does not exist") from None


def _check_entry(name: str, entry: Any, sizes: Sequence[int]) -> None:
    """Raises a ValueError where an entry says of a tensor what cannot be, given the sizes of the data files."""
    shape, dtype = _checked_shape(name, entry.shape), _checked_type(name, entry.dtype)
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


def _entries(data: bytes | mmap.mmap) -> Iterator[tuple[bytes, bytes]]:
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


def _block(data: bytes | mmap.mmap, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
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


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
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
