"""Folders of sounds as examples: split, of the length and rate that the network takes, and learnable."""

import wave

import keras
import numpy as np
import pytest

from finetune import run
from finetune.build.data import build_examples
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


def write(path, pitch, rate=8000, length=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.8 * np.sin(2 * np.pi * pitch * np.arange(length) / rate)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, length, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def sounds(recipe):
    """Ten low and ten high tones."""
    for number in range(10):
        write(recipe.parent / f"sounds/low/{number}.wav", 200 + 10 * number)
        write(recipe.parent / f"sounds/high/{number}.wav", 2000 + 50 * number)
    return recipe


def network(*shape):
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1.0)])


def sounds_of(recipe, shape, *keys):
    overrides = ["data={audio: sounds/}", *[f"data.{key}" for key in keys]]
    return build_examples(load_recipe(recipe, overrides=overrides), network(*shape))


def test_sounds_have_the_form_that_the_network_takes(sounds):
    for shape in ((1000,), (1000, 1), (400, 1)):
        assert sounds_of(sounds, shape).train.first(3)[0].shape == (3, *shape)
    assert sounds_of(sounds, (None, 1), "length=700").train.first(3)[0].shape == (3, 700, 1)


def test_classes_are_the_folders_and_keep_their_shares(sounds):
    examples = sounds_of(sounds, (1000,), "class_weight=balanced")
    assert examples.class_names == ("high", "low")
    assert np.bincount(examples.y_test).tolist() == [2, 2]
    assert all(
        place.startswith("high" if y == 0 else "low")
        for place, y in zip(examples.places["train"], examples.y_train, strict=True)
    )
    assert examples.source["sample_rate"] == 8000


def test_sounds_of_another_rate_are_resampled_where_the_recipe_says(sounds):
    write(sounds.parent / "sounds/low/other.wav", 200, rate=16000, length=2000)
    with pytest.raises(RecipeError, match=r"`0\.wav` 8,000, `other\.wav` 16,000\. Set `data\.sample_rate`"):
        sounds_of(sounds, (1000,))
    examples = sounds_of(sounds, (1000,), "sample_rate=8000", "split={test: 0.1}")
    rows = dict(
        zip(
            [*examples.places["train"], *examples.places["test"]],
            [*examples.train.first(99)[0], *examples.test.first(99)[0]],
            strict=True,
        )
    )
    np.testing.assert_allclose(rows["low/other.wav"][100:900], rows["low/0.wav"][100:900], atol=5e-3)


def test_a_file_that_is_no_sound_is_named_or_skipped(sounds):
    (sounds.parent / "sounds/low/3.wav").write_bytes(b"no sound")
    with pytest.raises(RecipeError, match=r"3\.wav` cannot be read as a WAV file: it does not begin as one"):
        sounds_of(sounds, (1000,))
    examples = sounds_of(sounds, (1000,), "on_error=skip")
    assert examples.source["skipped"] == ["low/3.wav"]


@pytest.mark.parametrize(
    ("shape", "keys", "said"),
    [
        ((None,), (), "Set `data.length`, in samples, such as `16000`."),
        ((8, 8, 3), (), "Sounds are samples: `(length,)`, or `(length, 1)`. The network takes (8, 8, 3)."),
        ((500,), ("length=400",), "The network takes sounds of 500 samples, and `data.length` is 400."),
    ],
)
def test_what_does_not_fit_the_network_is_said_with_its_place(sounds, shape, keys, said):
    with pytest.raises(RecipeError) as caught:
        sounds_of(sounds, shape, *keys)
    assert "`data.audio`: " in str(caught.value)
    assert said in str(caught.value)


def test_a_column_of_a_table_may_name_sounds(sounds):
    lines = ["file,pitch", *[f"sounds/low/{number}.wav,{200 + 10 * number}" for number in range(10)]]
    (sounds.parent / "sounds.csv").write_text("\n".join(lines))
    data = "data={table: sounds.csv, inputs: file, target: pitch, types: {file: audio}}"
    loaded = load_recipe(sounds, overrides=[data, "train.loss=mse"])
    assert build_examples(loaded, network(1000, 1)).train.first(2)[0].shape == (2, 1000, 1)


def test_a_network_of_samples_trains_from_a_recipe(sounds):
    keras.utils.set_random_seed(0)  # the weights in the file would follow from the tests before
    parts = [
        keras.Input((1000, 1)),
        keras.layers.STFTSpectrogram(mode="log", frame_length=64, frame_step=32, fft_length=64),
        keras.layers.Conv1D(4, 3, activation="relu", name="body"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2, activation="softmax", name="head"),
    ]
    keras.Sequential(parts).save("sound.keras")
    groups = "groups=[{name: all, rest: true, optimizer: adam, learning_rate: 3.0e-2}]"
    overrides = ["data={audio: sounds/}", "model={keras_file: sound.keras}", groups, "train.epochs=8"]
    assert run(sounds, "out", overrides=overrides).metrics["accuracy"] == 1.0
