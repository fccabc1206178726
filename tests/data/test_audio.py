"""Sounds in WAV files have the values that Python's `wave` and NumPy give, whatever their format."""

import struct
import wave

import numpy as np
import pytest

from finetune.data.audio import read_head, read_sound, resampled, sound_rows
from finetune.errors import DataError


def tone(rate, seconds=0.5, pitch=440.0):
    return 0.8 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)


def write(path, samples, rate=8000, width=2):
    """Writes PCM with Python's `wave`; `samples` from -1 to 1, shape `(length,)` or `(length, channels)`."""
    samples = samples if samples.ndim == 2 else samples[:, np.newaxis]
    whole = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype("<i8")
    data = (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i8").view(np.uint8).reshape(*whole.shape, 8)
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], width, rate, len(samples), "NONE", ""))
        file.writeframes(data.tobytes() if width == 1 else np.ascontiguousarray(data[..., :width]).tobytes())
    return path


def write_float(path, samples, rate=8000, width=4, extensible=False):
    data = samples.astype(f"<f{width}").tobytes()
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else 3, 1, rate, rate * width, width, 8 * width)
    if extensible:
        layout += struct.pack(
            "<HHIH14s", 22, 8 * width, 0, 3, b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
        )
    chunks = struct.pack("<4sI", b"fmt ", len(layout)) + layout + struct.pack("<4sI3sx", b"LIST", 3, b"abc")
    chunks += struct.pack("<4sI", b"data", len(data)) + data
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", len(chunks) + 4, b"WAVE") + chunks)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_every_width_become_numbers_from_minus_1_to_1(tmp_path, width):
    samples = tone(8000)
    read = read_sound(write(tmp_path / "a.wav", samples, width=width), 8000, len(samples))
    np.testing.assert_allclose(read, samples, atol=2.0 ** (2 - 8 * width) + 1e-7)
    assert read.dtype == np.float32


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("extensible", [False, True])
def test_floating_point_numbers_are_kept(tmp_path, width, extensible):
    samples = tone(8000)
    read = read_sound(write_float(tmp_path / "a.wav", samples, width=width, extensible=extensible), 8000, len(samples))
    np.testing.assert_array_equal(read, samples.astype(np.float32))


def test_channels_are_mixed_to_their_mean(tmp_path):
    left, right = tone(8000), tone(8000, pitch=700)
    read = read_sound(write(tmp_path / "a.wav", np.stack([left, right], axis=1)), 8000, len(left))
    np.testing.assert_allclose(read, (left + right) / 2, atol=1e-4)


def test_sounds_are_cut_or_filled_up(tmp_path):
    path = write(tmp_path / "a.wav", tone(8000))
    whole = read_sound(path, 8000, 4000)
    np.testing.assert_array_equal(read_sound(path, 8000, 100), whole[:100])
    longer = read_sound(path, 8000, 5000)
    np.testing.assert_array_equal(longer[:4000], whole)
    assert not longer[4000:].any()


@pytest.mark.parametrize(("rate", "new"), [(8000, 16000), (16000, 8000), (44100, 16000), (8000, 11025), (48000, 22050)])
def test_a_resampled_tone_is_the_tone_at_the_new_rate(tmp_path, rate, new):
    read = read_sound(write(tmp_path / "a.wav", tone(rate), rate), new, new // 2)
    inner = slice(new // 20, -new // 20)  # the ends have no neighbours
    np.testing.assert_allclose(read[inner], tone(new)[inner], atol=4e-3)


def test_what_a_lower_rate_cannot_hold_is_removed():
    assert np.abs(resampled(tone(16000, pitch=7000), 1, 4)[50:-50]).max() < 0.02


def test_only_as_much_of_a_file_is_read_as_is_needed(tmp_path):
    path = write(tmp_path / "a.wav", tone(8000, seconds=2))
    np.testing.assert_allclose(read_sound(path, 16000, 3000), read_sound(path, 16000, 32000)[:3000], atol=1e-6)


def test_rows_have_the_axis_that_the_network_takes(tmp_path):
    paths = [write(tmp_path / f"{n}.wav", tone(8000, pitch=300 * n)) for n in (1, 2)]
    for channel_axis, shape in ((False, (2, 100)), (True, (2, 100, 1))):
        rows = sound_rows(paths, rate=8000, length=100, channel_axis=channel_axis)
        assert rows.take([0, 1]).shape == shape
        np.testing.assert_array_equal(rows.take_row(1), rows.take([0, 1])[1])
    assert rows.fingerprint != sound_rows(paths, rate=8000, length=99, channel_axis=True).fingerprint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"ID3 something else entirely", "it does not begin as one"),
        (b"RIFF\x00\x00\x00\x00WAVE", "it has no samples"),
        (b"RIFF\x00\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd", "its samples come before their format"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8) + b"data\x04\x00\x00\x00abcd", "its samples have format 6 and 8 bits; only PCM and float are read"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + struct.pack("<HHIIHH", 1, 1, 8000, 8000, 2, 16) + b"data\x64\x00\x00\x00abcd", "it is cut short: 4 of 100 bytes of samples are there"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + struct.pack("<HH", 1, 1), "unpack_from requires"),
    ],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, content, said):
    (tmp_path / "a.wav").write_bytes(content)
    good = write(tmp_path / "b.wav", tone(8000))
    with pytest.raises(DataError) as caught:
        sound_rows([good, tmp_path / "a.wav"], rate=8000, length=10, channel_axis=False)
    assert f"a.wav` cannot be read as a WAV file: {said}" in str(caught.value)
    assert "Convert other formats: `ffmpeg -i sound.mp3 sound.wav`" in str(caught.value)


def test_a_size_that_a_pipe_left_open_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "a.wav", tone(8000))
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert read_head(path).length == 4000
