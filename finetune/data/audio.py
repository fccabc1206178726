"""Sounds in WAV files, decoded, mixed to one channel and resampled when they are taken.

Samples are float32 from -1 to 1. A file is read by NumPy, in pieces no longer than what is needed of it.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from finetune.data.file_beginnings import begins_as
from finetune.data.file_endings import SOUNDS
from finetune.data.file_names import file_paths
from finetune.data.rows import Rows, StoredRows
from finetune.errors import DataError
from finetune.machine_failures import raise_machine_failure

ENDINGS = SOUNDS
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_LONGEST_FORMAT = 40  # bytes of the description of the samples that count
_AT_ONCE = 2**24  # values of `resampled` in memory
_WIDTH = 16  # periods of the filter of resampling on each side of a sample


@dataclass(frozen=True)
class Sound:
    """What the head of a WAV file says.

    Attributes:
        rate: Samples in a second.
        channels: Number of channels.
        is_float: Whether samples are floating-point numbers.
        width: Bytes of a sample.
        start: Where the samples begin, in bytes.
        length: Samples of each channel.
    """

    rate: int
    channels: int
    is_float: bool
    width: int
    start: int
    length: int


def read_head(path: str | Path) -> Sound:
    """Reads the head of a WAV file.

    Raises:
        DataError: It is no WAV file, or its samples are compressed.
    """
    try:
        with Path(path).open("rb") as file:
            return _head(file)
    except (OSError, struct.error, ValueError) as error:
        raise_machine_failure(error, f"Reading `{path}`")
        raise DataError(f"`{path}` cannot be read as a WAV file: {error}.") from error


def _head(file: BinaryIO) -> Sound:
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        raise ValueError(f"it is {begins_as(head)}" if begins_as(head) else "it does not begin as one")
    layout = None
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"fmt ":
            content = file.read(min(size, _LONGEST_FORMAT))  # what the file says may be gigabytes
            file.seek(size + size % 2 - len(content), 1)
            kind, channels, rate, _, block, _ = struct.unpack_from("<HHIIHH", content)
            kind = struct.unpack_from("<H", content, 24)[0] if kind == _EXTENSIBLE and size >= 26 else kind
            layout = kind, channels, rate, block
        elif name == b"data":
            if layout is None:
                raise ValueError("its samples come before their format")
            kind, channels, rate, block = layout
            width = block // channels if channels else 0
            if not rate or (kind, width) not in {*((_PCM, each) for each in (1, 2, 3, 4)), (_FLOAT, 4), (_FLOAT, 8)}:
                raise ValueError(f"its samples have format {kind} and {8 * width} bits; only PCM and float are read")
            start = file.tell()
            available = file.seek(0, 2) - start
            if size == 0 or size >= 0x7FFFFF00:  # unknown: a program that writes to a pipe leaves it so
                size = available
            if size > available:
                raise ValueError(f"it is cut short: {available:,} of {size:,} bytes of samples are there")
            if size < block:
                raise ValueError("it has no samples")
            return Sound(rate, channels, kind == _FLOAT, width, start, size // block)
        else:
            file.seek(size + size % 2, 1)
    raise ValueError("it has no samples")


def read_sound(path: str | Path, rate: int, length: int) -> np.ndarray:
    """Returns the first samples of a WAV file.

    Args:
        path: The file.
        rate: Samples in a second; a file of another rate is resampled.
        length: Samples to return; a shorter sound is filled up with 0.

    Returns:
        Float32 of shape `(length,)`, the mean of all channels.

    Raises:
        DataError: The file cannot be read.
    """
    sound = read_head(path)
    down, up = sound.rate // gcd(sound.rate, rate), rate // gcd(sound.rate, rate)
    # With what the filter reaches beyond the last sample.
    needed = min(sound.length, -(-length * down // up) + 2 * _WIDTH * max(1, -(-down // up)))
    with Path(path).open("rb") as file:
        file.seek(sound.start)
        data = file.read(needed * sound.channels * sound.width)
    mono = _samples(data, sound).reshape(-1, sound.channels).mean(axis=1)
    if rate != sound.rate:
        mono = resampled(mono, up, down)
    whole = np.zeros(length, np.float32)
    whole[: min(len(mono), length)] = mono[:length]
    return whole


def _samples(data: bytes, sound: Sound) -> np.ndarray:
    if sound.is_float:
        return np.frombuffer(data, f"<f{sound.width}").astype(np.float64)
    if sound.width == 1:  # the only width without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if sound.width == 3:  # the upper three bytes of a number of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4") / 2.0**31
    return np.frombuffer(data, f"<i{sound.width}") / 2.0 ** (8 * sound.width - 1)


def resampled(samples: np.ndarray, up: int, down: int) -> np.ndarray:
    """Returns samples at `up / down` times their rate.

    A windowed sinc, `sum_k x[k] sinc(c (t - k)) c w(t - k)` with `c = min(1, up / down)`, which removes what the new
    rate cannot hold; `w` is Hann's window.

    Args:
        samples: Shape `(length,)`.
        up: Numerator of the ratio, >= 1.
        down: Denominator, >= 1.

    Returns:
        Shape `(ceil(length * up / down),)`.
    """
    cut = min(1.0, up / down)
    reach = int(np.ceil(_WIDTH / cut))
    padded = np.concatenate([np.zeros(reach), samples, np.zeros(reach + 1)])
    result = np.empty(-(-len(samples) * up // down))
    offsets = np.arange(-reach, reach + 1)
    for phase in range(min(up, len(result))):  # samples of a phase share their filter
        positions = np.arange(phase, len(result), up) * down
        fraction = (phase * down % up) / up
        distance = offsets - fraction
        window = np.where(np.abs(distance) <= reach, np.cos(np.pi * distance / (2 * reach)) ** 2, 0)
        kernel = cut * np.sinc(cut * distance) * window
        begin = positions // up  # in `padded`, where the filter of that sample begins
        windows, count = (
            np.lib.stride_tricks.sliding_window_view(padded, len(offsets)),
            max(1, _AT_ONCE // len(offsets)),
        )
        pieces = [windows[begin[start : start + count]] @ kernel for start in range(0, len(begin), count)]
        result[phase::up] = np.concatenate(pieces)
    return result


def sound_rows(
    paths: Sequence[Path],
    *,
    rate: int,
    length: int,
    channel_axis: bool,
    checked: bool = True,
    places: Sequence[str] = (),
) -> Rows:
    """Returns the sounds in some WAV files as rows, float32 of shape `(length,)` or `(length, 1)`.

    Args:
        paths: The files.
        rate: Samples in a second; files of another rate are resampled.
        length: Samples of each row; longer sounds are cut at their end, shorter ones are filled up with 0.
        channel_axis: Whether a row has a last axis of size 1, as networks of convolutions take it.
        checked: Whether the head of every file is read first, and files that are no sounds are an error.
        places: Where each file is named, such as `sounds.csv:17`, if anywhere.

    Raises:
        DataError: Files cannot be read; names them.
    """
    if checked:
        _check(paths, places)
    files = file_paths(paths)
    digest = hashlib.sha256(repr((rate, length, channel_axis)).encode())
    sizes = np.zeros(len(files), np.int64)
    for number, path in enumerate(files):
        stat = path.stat()
        sizes[number] = stat.st_size
        digest.update(os.fsencode(f"{path} {stat.st_size} {stat.st_mtime_ns}\n"))
    shape = (length, 1) if channel_axis else (length,)

    def read(index: Any) -> np.ndarray:
        return read_sound(files[int(index)], rate, length).reshape(shape)

    def take_row(index: Any) -> Any:
        samples: Any = tf.numpy_function(read, [index], tf.float32, stateful=False)
        return tf.ensure_shape(samples, shape)

    def take(indices: Any) -> Any:
        def several(numbers: np.ndarray) -> np.ndarray:
            return np.stack([read(number) for number in numbers])

        samples: Any = tf.numpy_function(several, [indices], tf.float32, stateful=False)
        return tf.ensure_shape(samples, (None, *shape))

    stored = StoredRows(lambda row: files[row].read_bytes(), sizes, files)
    return Rows(len(files), take, fingerprint=digest.hexdigest(), take_row=take_row, stored=stored)


def _check(paths: Sequence[Path], places: Sequence[str]) -> None:
    broken = []
    for number, path in enumerate(paths):
        try:
            read_head(path)
        except DataError as error:
            broken.append(f"`{places[number]}`: {error}" if places else str(error))
    if broken:
        more = f" So are {len(broken) - 1} more of {len(paths)}." if len(broken) > 1 else ""
        raise DataError(
            f"{broken[0]}{more} Convert other formats: `ffmpeg -i sound.mp3 sound.wav`; or remove the file."
        )
