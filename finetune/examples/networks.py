"""A small network for tables, so that a recipe needs no Python."""

from collections.abc import Sequence

import keras
from keras import layers

from finetune.errors import DataError


def mlp(units: Sequence[int] = (64, 64), dropout: float = 0.0, activation: str = "relu") -> keras.Model:
    """Makes a multilayer perceptron that takes vectors of any length, which is fixed by the first row.

    Its layers are `hidden_0`, `dropout_0`, `hidden_1` and so on. It has no output layer: add a `head`.

    Args:
        units: Widths of the hidden layers, each >= 1.
        dropout: Share of values dropped after each of them, in [0, 1).
        activation: Their activation.

    Raises:
        DataError: A width or the share is out of bounds.
    """
    if not isinstance(units, list | tuple) or not units or not all(type(each) is int and each > 0 for each in units):
        raise DataError(f"`units` lists the widths of the hidden layers, such as `[64, 64]`. Received: `{units}`.")
    if not 0 <= dropout < 1:
        raise DataError(f"`dropout` is the share of values to drop, from 0 to less than 1. Received: `{dropout}`.")
    stack: list[keras.Layer] = []
    for number, width in enumerate(units):
        stack.append(layers.Dense(width, activation=activation, name=f"hidden_{number}"))
        stack += [layers.Dropout(dropout, name=f"dropout_{number}")] if dropout else []
    return keras.Sequential(stack, name="mlp")
