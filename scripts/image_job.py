"""An image recipe and the same job as a plain Keras script, for `bench_run.py`: MobileNetV2 on folders of images."""

from pathlib import Path

import keras
import numpy as np

CLASSES = ("circles", "squares", "stripes")
RECIPE = """\
seed: 7
model:
  application: MobileNetV2
  weights: none
  input_shape: [96, 96, 3]
  head: {classes: auto}
data:
  images: photos
  size: [96, 96]
  split: {test: 0.2}
groups:
  - {name: body, layers: "0:-1", optimizer: adam, learning_rate: 1.0e-4}
  - {name: head, rest: true, optimizer: adam, learning_rate: 1.0e-3}
phases:
  - {train: [head], epochs: 2}
  - {train: all, epochs: 4}
train: {batch_size: 16}
"""
PLAIN = """\
import keras

keras.utils.set_random_seed(7)
train, test = keras.utils.image_dataset_from_directory(
    "photos", image_size=(96, 96), batch_size=16, seed=7, validation_split=0.2, subset="both", verbose=False
)
body = keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None, include_top=False, pooling="avg")
inputs = keras.Input((96, 96, 3))
outputs = keras.layers.Dense(3, activation="softmax")(body(keras.layers.Rescaling(1 / 127.5, -1.0)(inputs)))
model = keras.Model(inputs, outputs)
callbacks = lambda: [
    keras.callbacks.CSVLogger("metrics.csv", append=True),
    keras.callbacks.TensorBoard("tensorboard", write_graph=False),
    keras.callbacks.ModelCheckpoint("last.weights.h5", save_weights_only=True),
]
for trained, epochs, rate in ((False, 2, 1e-3), (True, 4, 1e-4)):
    body.trainable = trained
    model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    if not trained:
        before = model.evaluate(test, verbose=0)
    model.fit(train, epochs=epochs, verbose=0, callbacks=callbacks())
after = model.evaluate(test, verbose=0)
model.save("model.keras")
print(before, after)
"""


def write_photographs(folder: Path, each: int = 80) -> None:
    """Writes JPEG images of 128 by 128 pixels into a folder for each class.

    Args:
        folder: Where the folders go.
        each: How many images of each class.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :128]
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 120, (128, 128, 3)).astype("uint8")
            middle = rng.integers(40, 80)
            shown = {
                "circles": (rows - middle) ** 2 + (columns - middle) ** 2 < 900,
                "squares": np.maximum(abs(rows - middle), abs(columns - middle)) < 25,
                "stripes": columns % 8 == 0,
            }[kind]
            pixels[shown] = 220
            keras.utils.save_img(folder / kind / f"{number}.jpg", pixels, scale=False)
