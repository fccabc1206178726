"""Weights that are no finite numbers, and variances below zero: the one definition, for restore, training and saving.

A weight that is created as not trainable and belongs to no normalization layer may hold infinities: it is a constant of
the network, such as the mask of a causal attention. A NaN is never meant.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.checksum import as_array
from finetune.errors import printable
from finetune.groups.layer_tree import Leaf
from finetune.groups.weight_kinds import is_normalization
from finetune.variables import tf_variable


def is_variance(leaf: Leaf) -> bool:
    """Whether a weight holds variances, which a layer takes the square root of."""
    name = leaf.name.rpartition("/")[2].partition(":")[0].partition("~")[0]
    return name == "moving_variance" or (name == "variance" and isinstance(leaf.owner, keras.layers.Normalization))


def problem_in(leaf: Leaf, values: np.ndarray, *, variances: bool = True) -> str:
    """Returns what is wrong with the values of a weight, with the place of the first such value; empty if nothing is.

    Args:
        leaf: The weight.
        values: Its values, of any shape and type.
        variances: Whether a negative variance is wrong, too.
    """
    if values.dtype.kind in "biuSUO":
        return ""
    values = values if values.dtype.kind in "fc" else values.astype(np.float32)  # bfloat16 and the float8 types
    wrong = np.isnan(values) if _may_be_infinite(leaf) else ~np.isfinite(values)
    kind = "are no finite numbers"
    if variances and is_variance(leaf) and not wrong.any():
        wrong, kind = values < 0, "of a variance are negative"
    if not wrong.any():
        return ""
    first = np.unravel_index(int(np.argmax(wrong)), values.shape)
    at = f"[{', '.join(map(str, first))}]" if first else "the only value"
    return f"{np.count_nonzero(wrong):,} of {wrong.size:,} values {kind}, the first at {at}: {values[first]}"


def problems_in(leaves: Iterable[Leaf], groups: Mapping[str, str] | None = None) -> list[str]:
    """Returns a phrase for every weight with a problem, such as `` `conv/kernel` (group `stem`): 2 of 9 values ... ``.

    All weights are looked at where they are, and only those with a problem are read from the device. Done eagerly: a
    compiled function would save half a millisecond per hundred weights, and take half a second to compile.

    Args:
        leaves: The weights.
        groups: The name of the layer group of a weight, by the weight's name.
    """
    suspects = [leaf for leaf in leaves if tf.as_dtype(tf_variable(leaf.variable).dtype.name).name in _CHECKED]
    if not suspects:
        return []
    sound = tf.stack([tf.reduce_all(_sound(leaf)) for leaf in suspects]).numpy()
    phrases = []
    for leaf in (leaf for leaf, is_sound in zip(suspects, sound, strict=True) if not is_sound):
        problem = problem_in(leaf, as_array(leaf.variable))
        group = (groups or {}).get(leaf.name)
        if problem:
            phrases.append(f"`{printable(leaf.name)}`{f' (group `{group}`)' if group else ''}: {problem}")
    return phrases


def listed(phrases: list[str], *, limit: int = 5) -> str:
    """Joins phrases by semicolons, `limit` at most."""
    more = f" and {len(phrases) - limit} more" if len(phrases) > limit else ""
    return f"{'; '.join(phrases[:limit])}{more}"


_CHECKED = {"bfloat16", "float16", "float32", "float64", "complex64", "complex128"}


def _may_be_infinite(leaf: Leaf) -> bool:
    return not leaf.trainable and not is_normalization(leaf) and not is_variance(leaf)


def _sound(leaf: Leaf) -> tf.Tensor:
    values: Any = tf.convert_to_tensor(tf_variable(leaf.variable))
    is_good: Callable[[Any], Any] = tf.math.is_finite
    if values.dtype.is_complex:
        return tf.math.is_finite(tf.math.real(values)) & tf.math.is_finite(tf.math.imag(values))
    if _may_be_infinite(leaf):
        return ~tf.math.is_nan(values)
    return is_good(values) & (values >= 0) if is_variance(leaf) else is_good(values)
