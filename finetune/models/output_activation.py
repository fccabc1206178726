"""Which activation the outputs of a network have gone through, read from its graph of layers.

A cross-entropy takes probabilities by default, and its value for raw numbers is finite and means nothing. Keras cannot
tell the two apart once they are numbers, but a graph of layers ends in something that has a name.
"""

from typing import Any

import keras

from finetune.keras_private import source_of

PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid", "sparsemax")

# Layers and operations that only move or drop values: the activation before them is that of their output.
_KEEPS_VALUES = {
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Identity", "ActivityRegularization"),
    *("Reshape", "Flatten", "Permute", "RepeatVector", "Masking"),
    *("Cropping1D", "Cropping2D", "Cropping3D", "UpSampling1D", "UpSampling2D", "UpSampling3D"),
    *("Squeeze", "ExpandDims", "Transpose", "Moveaxis", "Swapaxes", "GetItem", "Take", "Cast", "Copy"),
    *("Split", "Unstack", "Resizing"),
}
_OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Sparsemax": "sparsemax"}
_WITH_A_LAYER = (keras.layers.TimeDistributed, keras.layers.SpectralNormalization)


def output_activations(model: Any) -> list[str | None]:
    """Returns the name of the activation of each output of a model, such as `softmax` or `linear`.

    Nested models are opened, and layers that keep values (`Reshape`, `Dropout`) are looked through. `None` stands for
    what the graph does not show: a subclassed model, a custom layer or activation, `Lambda`, arithmetic on tensors.
    """
    if not isinstance(model, keras.Function | keras.Sequential) or not getattr(model, "outputs", None):
        return [None] * max(1, len(getattr(model, "output_names", None) or ()))
    return [_activation_of(tensor) for tensor in keras.tree.flatten(model.outputs)]


def _activation_of(tensor: Any) -> str | None:
    operation, index, inputs = source_of(tensor)
    if isinstance(operation, keras.Function | keras.Sequential) and operation.outputs:
        return _activation_of(keras.tree.flatten(operation.outputs)[index])
    kind = type(operation).__name__
    is_of_keras = type(operation).__module__.startswith("keras.")
    if is_of_keras and kind in _KEEPS_VALUES and len(inputs) == 1:
        return _activation_of(inputs[0])
    if is_of_keras and kind in _OPERATIONS:
        return _OPERATIONS[kind]
    if isinstance(operation, _WITH_A_LAYER):
        operation = operation.layer
    return _name_of(getattr(operation, "activation", None))


def _name_of(activation: Any) -> str | None:
    """Returns the name of an activation of Keras; of any other function nothing is known."""
    name = getattr(activation, "__name__", "")
    return name if name and getattr(keras.activations, name, None) is activation else None
