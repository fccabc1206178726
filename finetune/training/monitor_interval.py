"""How often layer groups are measured where nobody has said it: as often as costs at most 2 % of the steps' time.

    interval = (FIXED + SHARE x step) / (0.02 x step)

The time of a step is estimated from the network and the machine, not measured: with the same recipe a run has the same
rows each time, and so has one that was killed and goes on.
"""

import os
from math import ceil, prod
from typing import Any

import keras
import tensorflow as tf

from finetune.groups.layer_tree import layers_in_order
from finetune.keras_private import layer_variables

_COST = 0.02  # of the time of the steps
_FIXED = 2.5e-3  # seconds of a measured step that do not depend on the network (measured: 2.0 to 2.7 ms)
_SHARE = 1.6  # of a step, for its second forward and backward pass and for reading the weights (measured: 1.1 to 1.5)
# Of a step: what TensorFlow needs to start it, and the operations of one weight; the latter is 20 to 60 microseconds.
_START, _OF_WEIGHT = 1.5e-4, 3e-5
_PER_CORE, _PER_GPU = 1.5e10, 1e13  # floating-point operations a second
# A short training gets some rows, too: they take less than a twentieth of a second. Not where compiling the pass of a
# deep network takes seconds, nor where a training is a trial of a few steps.
_ROWS, _WEIGHTS, _STEPS = 10, 40, 50


def measured_every(setting: int | str, model: keras.Model, *, batch_size: int, steps: int) -> int:
    """Returns every how many steps the layer groups of a model are measured; 0 where a training is too short for it.

    Args:
        setting: A number of steps, `auto` or `off`.
        model: A built model.
        batch_size: Rows in a batch, >= 1.
        steps: Steps of the whole training, >= 1.
    """
    if setting == "off":
        return 0
    every = automatic_interval(model, batch_size=batch_size, steps=steps) if setting == "auto" else int(setting)
    return every if every <= steps else 0


def automatic_interval(model: keras.Model, *, batch_size: int, steps: int) -> int:
    """Returns every how many steps the layer groups of a model are measured.

    Args:
        model: A built model.
        batch_size: Rows in a batch, >= 1.
        steps: Steps of the whole training, >= 1.
    """
    weights = len(model.trainable_variables)
    gpus = len(tf.config.list_logical_devices("GPU"))
    speed = gpus * _PER_GPU if gpus else (os.cpu_count() or 1) * _PER_CORE
    seconds = _START + weights * _OF_WEIGHT + 6 * batch_size * _multiplications(model) / speed
    interval = ceil((_FIXED + _SHARE * seconds) / (_COST * seconds))
    is_short = _STEPS <= steps < _ROWS * interval and weights <= _WEIGHTS
    return max(1, steps // _ROWS) if is_short else interval


def _multiplications(model: keras.Model) -> int:
    """Returns about how many a forward pass of a row makes: each weight, at each place of its layer's output."""
    layers = [layer for layer in layers_in_order(model) if not isinstance(layer, keras.layers.Embedding)]
    own = [[weight for weights in layer_variables(layer) for weight in weights] for layer in layers]
    sizes = [sum(prod(weight.shape) for weight in weights) for weights in own]
    return sum(size * _places(layer) for size, layer in zip(sizes, layers, strict=True) if size)


def _places(layer: Any) -> int:
    """Returns at how many places a layer applies its weights to a row, such as the pixels; 1 where it is not known."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # it was called never, or more than once, or has several outputs
        return 1
    return prod(size or 1 for size in shape[1:-1])
