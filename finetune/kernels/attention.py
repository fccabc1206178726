"""Dot-product attention as two batched matrix products around a softmax.

    output = softmax(scale query key^T + mask) value

for each example and head; `mask` is 0 where a position may be attended to, and a large negative number elsewhere.
Keras computes it by `tf.einsum`, whose products TensorFlow differentiates by further ones, scales the scores and not
the queries, of which there are fewer, and spreads the mask to the shape of the scores.

References:
    Vaswani et al. (2017), section 3.2.1, https://arxiv.org/abs/1706.03762
    `keras.ops.dot_product_attention`, which it stands for.
"""

import math
from typing import Any

import tensorflow as tf

from finetune.kernels.einsum import einsum

_HALF = (tf.float16, tf.bfloat16)
_MASKED = -0.7 * 3.38953e38  # the score that Keras gives to what is masked


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """Computes a `keras.ops.dot_product_attention`.

    Args:
        query: What attends, shape `(batch, targets, heads, size)`.
        key: What is attended to, shape `(batch, sources, heads, size)`.
        value: What is read, shape `(batch, sources, heads, size of a value)`.
        bias: Added to the scores; the kernel takes none.
        mask: Whether a target may attend to a source; spreads to shape `(batch, heads, targets, sources)`.
        scale: Factor of the scores; `None` for one over the root of `size`.
        is_causal: Whether a target attends only to sources up to its own position.
        options: `flash_attention` and `attn_logits_soft_cap`, which Keras has not on TensorFlow.

    Returns:
        Shape `(batch, targets, heads, size of a value)`; `None` where the kernel does not apply.
    """
    tensors = query, key, value
    if bias is not None or any(options.values()) or not all(isinstance(x, tf.Tensor) for x in tensors):
        return None
    if any(x.shape.rank != 4 or x.dtype != query.dtype or not x.dtype.is_floating for x in tensors):
        return None
    heads, size = query.shape[2], query.shape[3]
    if heads is None or size is None or any(x.shape[2] != heads for x in (key, value)):
        return None  # several queries share a key
    if mask is not None and mask.dtype != tf.bool:
        return None
    if scale is None:
        scale = 1.0 / math.sqrt(size)
    # The softmax of half precision is in float32, and so is the scale, which rounds.
    if query.dtype in _HALF:
        scores: Any = tf.cast(einsum("btnh,bsnh->bnts", query, key), tf.float32) * tf.cast(scale, tf.float32)
    else:
        scores = einsum("btnh,bsnh->bnts", query * tf.cast(scale, query.dtype), key)
    if is_causal:
        causal = tf.linalg.band_part(tf.ones(tf.shape(scores)[2:], "bool"), -1, 0)
        mask = causal if mask is None else tf.logical_and(mask, causal)
    if mask is not None:
        scores = tf.where(mask, scores, tf.constant(_MASKED, scores.dtype))
    return einsum("bnts,bsnh->btnh", tf.cast(tf.nn.softmax(scores), key.dtype), value)
