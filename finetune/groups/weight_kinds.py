"""What a weight is: whether a normalization layer owns it, and whether weight decay makes sense for it."""

import keras
import tensorflow as tf

from finetune.groups.layer_tree import Leaf

_NORMALIZATION = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)


def is_normalization(leaf: Leaf) -> bool:
    """Whether a normalization layer owns the weight; without a Keras layer, the name of the weight decides."""
    if not isinstance(leaf.owner, keras.layers.Layer):
        return _variable_name(leaf) in ("gamma", "beta", "moving_mean", "moving_variance")
    custom = type(leaf.owner).__name__.endswith(("Norm", "Normalization"))
    not_normalizing = (keras.layers.Wrapper, keras.layers.Normalization)  # SpectralNormalization; preprocessing
    return isinstance(leaf.owner, _NORMALIZATION) or (custom and not isinstance(leaf.owner, not_normalizing))


def takes_weight_decay(leaf: Leaf) -> bool:
    """Whether weight decay makes sense: not for biases, scalars, vectors and what normalization layers own."""
    rank = leaf.variable.shape.rank if isinstance(leaf.variable.shape, tf.TensorShape) else len(leaf.variable.shape)
    is_bias = _variable_name(leaf) == "bias" or _variable_name(leaf).endswith("_bias")
    return leaf.trainable and not is_bias and (rank is None or rank > 1) and not is_normalization(leaf)


def _variable_name(leaf: Leaf) -> str:
    return leaf.name.rpartition("/")[2].partition("~")[0]
