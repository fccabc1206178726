"""The chords: their notes are in the sound, and every file is another one."""

import wave

import numpy as np
import pytest

from finetune.examples.chords import CHORDS, SAMPLE_RATE, chord, write_chords


@pytest.mark.parametrize("name", CHORDS)
def test_the_strongest_pitches_of_a_chord_are_its_notes(name):
    spectrum = np.zeros(SAMPLE_RATE // 2 + 1)
    for seed in range(12):
        spectrum += np.abs(np.fft.rfft(chord(CHORDS[name], np.random.default_rng(seed)))) ** 2
    pitches = np.zeros(12)
    for hertz in range(60, 2000):
        pitches[round(69 + 12 * np.log2(hertz / 440)) % 12] += spectrum[hertz]
    assert set(np.argsort(pitches)[-3:]) == {note % 12 for note in CHORDS[name]}


def test_the_files_are_sounds_of_a_second_in_the_folder_of_their_chord(tmp_path):
    write_chords(tmp_path, each=2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav"))
    assert files == [f"{name}/0{number}.wav" for name in sorted(CHORDS) for number in range(2)]
    contents = {(tmp_path / file).read_bytes() for file in files}
    assert len(contents) == len(files)
    with wave.open(str(tmp_path / files[0])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (SAMPLE_RATE, 1, SAMPLE_RATE)
