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


def cnn(filters: Sequence[int] = (16, 32, 64), scale: float = 1 / 255) -> keras.Model:
    """Makes a small convolutional network that takes images of any size, which is fixed by the first row.

    Each block is a convolution of 3 x 3, `BatchNormalization`, ReLU and pooling by 2. It has no output layer: add a
    `head`.

    Args:
        filters: How many filters the convolution of each block has, each >= 1. More than 4 blocks need images of more
            than 32 pixels.
        scale: What pixels are multiplied with; 1 / 255 for those from 0 to 255.

    Raises:
        DataError: A number of filters is out of bounds.
    """
    _check_widths("filters", "the filters of each block", filters)
    stack: list[keras.Layer] = [layers.Rescaling(scale, name="scale")]
    for number, width in enumerate(filters):
        stack += _block(number, width)
    return keras.Sequential(stack, name="cnn")


def sound_cnn(filters: Sequence[int] = (16, 32, 64), window: int = 256) -> keras.Model:
    """Makes a small convolutional network that takes sounds, as samples from -1 to 1, of a length that is fixed.

    It computes a logarithmic spectrogram, and has the blocks of `cnn` behind it. It has no output layer: add a `head`.

    Args:
        filters: As for `cnn`.
        window: Samples of each column of the spectrogram, a power of 2; the next column begins half as many later.

    Raises:
        DataError: A number is out of bounds.
    """
    _check_widths("filters", "the filters of each block", filters)
    if type(window) is not int or window < 16 or window & (window - 1):
        raise DataError(f"`window` is a power of 2 of at least 16 samples, such as 256. Received: `{window}`.")
    stack: list[keras.Layer] = [
        layers.Reshape((-1, 1), name="samples"),
        layers.STFTSpectrogram(
            mode="log",
            frame_length=window,
            frame_step=window // 2,
            fft_length=window,
            expand_dims=True,
            name="spectrum",
        ),
        layers.BatchNormalization(name="scale"),
    ]
    for number, width in enumerate(filters):
        stack += _block(number, width)
    return keras.Sequential(stack, name="sound_cnn")


def word_average(vocabulary: int, width: int = 32, units: Sequence[int] = (32,), dropout: float = 0.2) -> keras.Model:
    """Makes a network that takes token ids, and averages an embedding of each; the id 0 is padding.

    It has no output layer: add a `head`.

    Args:
        vocabulary: How many tokens there are, >= 1: ids are from 0 to one less.
        width: Width of the embeddings, >= 1.
        units: Widths of the hidden layers, each >= 1.
        dropout: Share of values dropped after each of them, in [0, 1).

    Raises:
        DataError: A number is out of bounds.
    """
    _check_widths("vocabulary", "how many tokens there are", [vocabulary])
    _check_widths("width", "the width of the embeddings", [width])
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    embedded = layers.Embedding(vocabulary, width, mask_zero=True, name="embedding")(tokens)
    averaged = layers.GlobalAveragePooling1D(name="average")(embedded)
    return keras.Model(tokens, mlp(units, dropout)(averaged), name="word_average")


def _block(number: int, width: int) -> list[keras.Layer]:
    # Keras' momentum of 0.99 keeps 9 % of the initial statistics after 240 steps, which is all that a few hundred
    # images make: a network that was right in all training rows was right in 18 % of the test rows.
    return [
        layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv_{number}"),
        layers.BatchNormalization(momentum=0.9, name=f"norm_{number}"),
        layers.ReLU(name=f"relu_{number}"),
        layers.MaxPooling2D(2, padding="same", name=f"pool_{number}"),
    ]


def _check_widths(name: str, meaning: str, widths: Sequence[int]) -> None:
    if not isinstance(widths, list | tuple) or not widths or not all(type(each) is int and each > 0 for each in widths):
        raise DataError(f"`{name}` says {meaning}, each a whole number of at least 1. Received: `{widths}`.")
