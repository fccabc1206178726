"""Recipes for commands that need data in files."""

import keras
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """A recipe of 3 classes with 8 images each, of one colour a class, and a network for images of 8x8 pixels."""
    for name, colour in {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (12 + number, 10), colour).save(tmp_path / "photos" / name / f"{number}.png")
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, keras.layers.Dense(8, activation="relu", name="body")(pooled)).save(tmp_path / "net.keras")
    recipe = tmp_path / "photos.yaml"
    recipe.write_text("""
model: {keras_file: net.keras, head: {classes: auto}}
data: {images: photos/, split: {test: 0.25, validation: 0.25}, class_weight: balanced}
groups: [{name: body, prefixes: [body], frozen: true}, {name: head, rest: true, optimizer: adam, learning_rate: 0.1}]
train: {epochs: 20, batch_size: 4, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
""")
    return recipe
