"""MiniLM, a small BERT that embeds sentences, as a Keras network into which PyTorch weights can be restored.

The network is that of Wang et al. (2020), MiniLM, https://arxiv.org/abs/2002.10957, as all-MiniLM-L6-v2 of the Sentence
Transformers uses it. `recipes/parts/minilm.yaml` maps the names and layouts of its safetensors file onto this network.
"""

from typing import Any

import keras
from keras import layers, ops

PAD = 0
_WIDTH, _HEADS, _INNER = 384, 12, 1536


def encoder(num_layers: int = 6, vocabulary: int = 30522, max_length: int = 512) -> keras.Model:
    """Builds the sentence encoder, with fresh weights.

    Its layers are `embeddings`, `layer_0`, `layer_1`, ..., and at the end `sentence`; 22.6 million parameters. Inputs
    are token ids of BERT's uncased vocabulary, shape `(batch, length)`, filled up with 0. Outputs are embeddings of
    length 1, shape `(batch, 384)`: their products are cosines.

    Args:
        num_layers: How many transformer layers, >= 1.
        vocabulary: How many token ids there are.
        max_length: The longest sentence, in tokens.
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    return keras.Model(tokens, _sentence(tokens, num_layers, vocabulary, max_length), name="minilm")


def classifier(
    num_classes: int = 2, num_layers: int = 6, vocabulary: int = 30522, max_length: int = 512, pairs: bool = False
) -> keras.Model:
    """Builds the encoder with a layer `head` on top that gives the probabilities of classes.

    Args:
        num_classes: Width of the head, >= 2.
        num_layers: As in `encoder`.
        vocabulary: As in `encoder`.
        max_length: As in `encoder`.
        pairs: Whether the inputs are `token_ids` of two texts and `segment_ids`, 0 for tokens of the first text and 1
            for those of the second, both of shape `(batch, length)`.
    """
    tokens = keras.Input((None,), dtype="int32", name="token_ids" if pairs else "tokens")
    types = keras.Input((None,), dtype="int32", name="segment_ids") if pairs else None
    x = _sentence(tokens, num_layers, vocabulary, max_length, types)
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32", name="head")(x)
    return keras.Model([tokens, types] if pairs else tokens, outputs, name="minilm_classifier")


def _sentence(tokens: Any, num_layers: int, vocabulary: int, max_length: int, types: Any = None) -> Any:
    present = ops.not_equal(tokens, PAD)
    x = _embeddings(vocabulary, max_length, has_types=types is not None)(tokens if types is None else [tokens, types])
    for number in range(num_layers):
        x = _transformer_layer(f"layer_{number}")([x, present])
    # Mean over the tokens that are not padding, shape (batch, 384).
    weights = ops.expand_dims(ops.cast(present, x.dtype), -1)
    mean = ops.divide(ops.sum(x * weights, axis=1), ops.maximum(ops.sum(weights, axis=1), 1e-9))
    return layers.UnitNormalization(name="sentence")(mean)


def _embeddings(vocabulary: int, max_length: int, has_types: bool) -> keras.Model:
    tokens = keras.Input((None,), dtype="int32")
    ones: Any = ops.ones_like(tokens)
    types = keras.Input((None,), dtype="int32") if has_types else ones - 1  # a single sentence: all are of type 0
    x = layers.Embedding(vocabulary, _WIDTH, name="word")(tokens)
    x += layers.Embedding(2, _WIDTH, name="token_type")(types)
    places: Any = ops.cumsum(ones, axis=1)
    x += layers.Embedding(max_length, _WIDTH, name="position")(places - 1)
    return keras.Model([tokens, types] if has_types else tokens, _norm("norm")(x), name="embeddings")


def _transformer_layer(name: str) -> keras.Model:
    inputs, present = keras.Input((None, _WIDTH)), keras.Input((None,), dtype="bool")
    attention = layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, name="attention")
    attended = attention(inputs, inputs, attention_mask=ops.expand_dims(present, 1))
    x = _norm("attention_norm")(inputs + attended)
    y = layers.Dense(_INNER, name="intermediate")(x)
    y = layers.Dense(_WIDTH, name="output")(ops.gelu(y, approximate=False))
    return keras.Model([inputs, present], _norm("output_norm")(x + y), name=name)


def _norm(name: str) -> layers.LayerNormalization:
    return layers.LayerNormalization(epsilon=1e-12, name=name)
