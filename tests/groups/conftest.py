"""A model with a stem, blocks and a head, and its layer tree."""

import keras
import pytest

from finetune.groups.layer_tree import LayerTree, layer_tree

L = keras.layers


@pytest.fixture(scope="session")
def make_model():
    """Makes input, stem (conv, bn), block_1, block_2, head; `block_10` to catch matching without a boundary."""
    return blocks


@pytest.fixture(scope="session")
def tree() -> LayerTree:
    """The layer tree of the model; read only."""
    return layer_tree(blocks())


def blocks() -> keras.Model:
    image = x = keras.Input((4, 4, 1), name="image")
    x = L.BatchNormalization(name="bn")(L.Conv2D(2, 2, name="stem")(x))
    x = L.Dropout(0.1, name="drop")(L.Flatten(name="flat")(x))
    for name in ("block_1", "block_2", "block_10"):
        x = L.Dense(3, name=name)(x)
    return keras.Model(image, L.Dense(2, name="head")(x))
