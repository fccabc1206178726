"""A small network and the 8x8 digits it is fine-tuned to.

The digits are the 1,797 images of the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998), UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/80, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/), in the copy that scikit-learn ships; `scripts/make_uci_digits.py` wrote
the file and says what was changed.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from finetune.data.examples import Examples, Split, make_examples
from finetune.errors import DataError

_FILE = Path(__file__).with_name("uci_digits.npz")
_FILTERS = (32, 64, 64)


def small_cnn(num_classes: int = 10) -> keras.Model:
    """Builds a convolutional network for digits of 28x28 pixels, with fresh weights.

    Its layers are `conv1`, `bn1`, `relu1`, `pool1`, the same again with 2 and 3, `flatten` and `head`; 62,154
    parameters for 10 classes. Inputs have shape `(batch, 28, 28, 1)` and lie in 0..1; outputs are probabilities, for
    a loss such as `sparse_categorical_crossentropy`.

    Args:
        num_classes: Width of the head, >= 2.
    """
    x = inputs = keras.Input((28, 28, 1), name="image")
    for number, filters in enumerate(_FILTERS, start=1):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{number}")(x)
        # Keras' default of 0.99 needs hundreds of steps before the moving statistics mean anything.
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        x = layers.MaxPooling2D(name=f"pool{number}")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32", name="head")(x)
    return keras.Model(inputs, outputs, name="small_cnn")


def uci_digits(train_rows: int = 100, test_rows: int = 1000, validation_rows: int = 0, seed: int = 0) -> Examples:
    """Returns a seeded split of the 1,797 UCI digits, scaled to 0..1 and enlarged to 28x28 pixels.

    Inputs are float32 of shape `(rows, 28, 28, 1)`, labels int64 of shape `(rows,)`. The parts are disjoint. The test
    rows depend on `seed` and `test_rows` alone. Training rows hold all classes equally often, up to a difference of 1,
    and the rows of a smaller training set come first in a larger training set. Test and validation rows are random.

    Args:
        train_rows: Training rows, >= 1.
        test_rows: Test rows, >= 1.
        validation_rows: Validation rows; 0 leaves them out.
        seed: Seed of the split.

    Raises:
        DataError: A part is too small, or there are not enough digits for all of them.
    """
    with np.load(_FILE, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    _check_rows(len(labels), train_rows, test_rows, validation_rows)
    order = np.random.default_rng(seed).permutation(len(labels))
    left = len(order) - validation_rows
    test, validation = order[:test_rows], order[left:]
    train = _classes_in_turn(order[test_rows:left], labels)[:train_rows]
    parts = [train, test, validation] if validation_rows else [train, test]
    return make_examples(*(Split(enlarge(images[rows]), labels[rows]) for rows in parts))


def enlarge(images: np.ndarray) -> np.ndarray:
    """Doubles every pixel of 8x8 images and centres the result on black, as in MNIST.

    Of the simple rules (bilinear or by repetition, to 16, 18, 20, 22, 24 or 28 pixels) this rule leaves the network
    trained on MNIST the most accurate before any fine-tuning.

    Args:
        images: Shape `(rows, 8, 8)`, 0 to 16.

    Returns:
        Float32 of shape `(rows, 28, 28, 1)`, 0 to 1.
    """
    doubled = images.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32) / 16
    return np.pad(doubled, ((0, 0), (6, 6), (6, 6)))[..., np.newaxis]


def _classes_in_turn(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders rows so that every class comes once before any comes twice, and so on."""
    turn = np.empty(len(rows), dtype=np.int64)
    for label in np.unique(labels):
        of_class = labels[rows] == label
        turn[of_class] = np.arange(np.count_nonzero(of_class))
    return rows[np.argsort(turn, kind="stable")]


def _check_rows(available: int, train_rows: int, test_rows: int, validation_rows: int) -> None:
    total = train_rows + test_rows + validation_rows
    if train_rows < 1 or test_rows < 1 or validation_rows < 0 or total > available:
        raise DataError(
            f"`train_rows` and `test_rows` must be at least 1, `validation_rows` at least 0, and all three together at "
            f"most {available}; received {train_rows}, {test_rows} and {validation_rows}, together {total}. "
            "Choose smaller numbers of rows."
        )
