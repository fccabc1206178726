"""Six chords as WAV files in a folder for each: `finetune fetch chords` computes them.

A note is a sum of harmonics that die away, as a plucked string's; a chord is three of them in a random inversion,
octave, timbre and loudness, with noise.
"""

import wave
from pathlib import Path

import numpy as np

SAMPLE_RATE = 22050
CHORDS = {
    "A_minor": (57, 60, 64),
    "C": (60, 64, 67),
    "D_minor": (62, 65, 69),
    "E_minor": (64, 67, 71),
    "F": (65, 69, 72),
    "G": (55, 59, 62),
}  # notes of MIDI: 69 is 440 Hz


def write_chords(out: Path, *, each: int = 30) -> None:
    """Writes the files: `out/C/00.wav` and so on, one second of 16 bits each.

    Args:
        out: The folder to write to.
        each: Files of a chord.
    """
    rng = np.random.default_rng(0)
    for name, notes in CHORDS.items():
        (out / name).mkdir()
        for number in range(each):
            samples = np.int16(32767 * np.clip(chord(notes, rng), -1, 1))
            with wave.open(str(out / name / f"{number:02}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(SAMPLE_RATE)
                file.writeframes(samples.astype("<i2").tobytes())


def chord(notes: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns a second of a chord, in [-1, 1].

    Args:
        notes: The notes of MIDI in root position.
        rng: Chooses everything that is not the chord.
    """
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    lowest = rng.integers(len(notes))  # the inversion: notes below it move up by an octave
    octave = 12 * rng.integers(-1, 2)
    decay, brightness = rng.uniform(1, 6), rng.uniform(0.3, 0.9)
    sound = rng.normal(0, rng.uniform(0.001, 0.02), SAMPLE_RATE)
    for place, note in enumerate(notes):
        frequency = 440 * 2 ** ((note + octave + (12 if place < lowest else 0) - 69 + rng.normal(0, 0.05)) / 12)
        loudness = rng.uniform(0.1, 0.3)
        for harmonic in range(1, 1 + min(8, int(SAMPLE_RATE / 2 / frequency))):
            wave_of_it = np.sin(2 * np.pi * harmonic * frequency * seconds + rng.uniform(0, 2 * np.pi))
            sound += loudness * brightness ** (harmonic - 1) * np.exp(-decay * seconds * harmonic**0.5) * wave_of_it
    return sound * rng.uniform(0.4, 1.0)
