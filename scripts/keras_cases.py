"""One tiny model for every public layer of Keras.

`layer_cases` goes through the namespace `keras.layers`. A layer that stands in a model with its default arguments, and
whose input follows from its name (`...2D` takes images), needs no line here; for others `ARGUMENTS` and `SHAPES` say
how it is made and on what it is called. `scripts/keras_grid.py` and
`tests/training/fast/test_every_keras_layer.py` train what is made here in every way and compare.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

# What a layer is called on, by kind. All have three channels, so that the layers before it have weights of one shape
# and are updated together, in buffers.
SHAPES_OF_KINDS: dict[str, tuple[int, ...]] = {
    "vector": (3,),
    "sequence": (5, 3),
    "image": (6, 6, 3),
    "volume": (4, 4, 4, 3),
    "video": (3, 4, 4, 3),
    "long video": (2, 4, 4, 4, 3),
    "signal": (16,),
    "channel": (16, 1),
    "tokens": (5,),
    "words": (1,),
}
BATCH, BATCHES = 2, 2
VARIANTS = ("plain", "mixed_bfloat16", "mixed_float16", "jit_compile", "masked", "ragged")

# Not layers, abstract, or of another backend: each with its reason.
NOT_IN_A_MODEL = {
    "InputSpec": "not a layer",
    "InputLayer": "is in every model, as `keras.Input`",
    "Layer": "abstract",
    "Wrapper": "abstract",
    "FlaxLayer": "needs JAX",
    "JaxLayer": "needs JAX",
    "TorchModuleWrapper": "needs PyTorch",
    "TFSMLayer": "a loaded graph, whose variables no optimizer of Keras can name; `finetune.HubLayer` is for these",
    "MaxNumBoundingBoxes": "changes bounding boxes, which are labels",
}

ARGUMENTS: dict[str, Callable[[], Any]] = {
    "Activation": lambda: layers.Activation("gelu"),
    "ActivityRegularization": lambda: layers.ActivityRegularization(0.01, 0.01),
    "AdaptiveAveragePooling1D": lambda: layers.AdaptiveAveragePooling1D(2),
    "AdaptiveAveragePooling2D": lambda: layers.AdaptiveAveragePooling2D(2),
    "AdaptiveAveragePooling3D": lambda: layers.AdaptiveAveragePooling3D(2),
    "AdaptiveMaxPooling1D": lambda: layers.AdaptiveMaxPooling1D(2),
    "AdaptiveMaxPooling2D": lambda: layers.AdaptiveMaxPooling2D(2),
    "AdaptiveMaxPooling3D": lambda: layers.AdaptiveMaxPooling3D(2),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "AveragePooling1D": lambda: layers.AveragePooling1D(2),
    "AveragePooling2D": lambda: layers.AveragePooling2D(2),
    "AveragePooling3D": lambda: layers.AveragePooling3D(2),
    "BatchNormalization": lambda: layers.BatchNormalization(momentum=0.5),
    "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(2)),
    "CategoryEncoding": lambda: layers.CategoryEncoding(9, output_mode="multi_hot"),
    "CenterCrop": lambda: layers.CenterCrop(4, 4),
    "Conv1D": lambda: layers.Conv1D(2, 2),
    "Conv1DTranspose": lambda: layers.Conv1DTranspose(2, 2),
    "Conv2D": lambda: layers.Conv2D(2, 2),
    "Conv2DTranspose": lambda: layers.Conv2DTranspose(2, 2),
    "Conv3D": lambda: layers.Conv3D(2, 2),
    "Conv3DTranspose": lambda: layers.Conv3DTranspose(2, 2),
    "ConvLSTM1D": lambda: layers.ConvLSTM1D(2, 2),
    "ConvLSTM2D": lambda: layers.ConvLSTM2D(2, 2),
    "ConvLSTM3D": lambda: layers.ConvLSTM3D(2, 2),
    "Dense": lambda: layers.Dense(3),
    "DepthwiseConv1D": lambda: layers.DepthwiseConv1D(2),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(2),
    "Discretization": lambda: layers.Discretization([0.2, 0.4, 0.6], output_mode="one_hot"),
    "Dot": lambda: layers.Dot(-1),
    "Dropout": lambda: layers.Dropout(0.5),
    "EinsumDense": lambda: layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d"),
    "Embedding": lambda: layers.Embedding(9, 3),
    "Equalization": lambda: Inside(layers.Equalization()),  # in a graph of layers, Keras takes it for a cycle
    "GRU": lambda: layers.GRU(2),
    "GRUCell": lambda: layers.RNN(layers.GRUCell(2)),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "GroupNormalization": lambda: layers.GroupNormalization(3),
    "GroupQueryAttention": lambda: layers.GroupQueryAttention(2, 2, 1),
    "HashedCrossing": lambda: layers.HashedCrossing(4, output_mode="one_hot"),
    "Hashing": lambda: layers.Hashing(4),
    "IntegerLookup": lambda: layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="one_hot"),
    "LSTM": lambda: layers.LSTM(2),
    "LSTMCell": lambda: layers.RNN(layers.LSTMCell(2)),
    "Lambda": lambda: layers.Lambda(lambda x: x * 2.0),
    "MelSpectrogram": lambda: layers.MelSpectrogram(8, 4, num_mel_bins=4),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(2, 2),
    "Normalization": lambda: layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
    "Permute": lambda: layers.Permute((2, 1)),
    "Pipeline": lambda: layers.Pipeline([layers.RandomFlip(), layers.Rescaling(2.0)]),
    "RNN": lambda: layers.RNN(layers.SimpleRNNCell(2)),
    "RandomBrightness": lambda: layers.RandomBrightness(0.5),
    "RandomColorDegeneration": lambda: layers.RandomColorDegeneration(0.5),
    "RandomColorJitter": lambda: layers.RandomColorJitter((0, 1), 0.2, 0.2, (0.2, 0.8), 0.2),
    "RandomContrast": lambda: layers.RandomContrast(0.5),
    "RandomCrop": lambda: layers.RandomCrop(4, 4),
    "RandomHue": lambda: layers.RandomHue(0.5),
    "RandomPosterization": lambda: layers.RandomPosterization(4),
    "RandomRotation": lambda: layers.RandomRotation(0.3),
    "RandomSaturation": lambda: layers.RandomSaturation(0.5),
    "RandomSharpness": lambda: layers.RandomSharpness(0.5),
    "RandomShear": lambda: layers.RandomShear(0.3, 0.3),
    "RandomTranslation": lambda: layers.RandomTranslation(0.3, 0.3),
    "RandomZoom": lambda: layers.RandomZoom(0.3),
    "RepeatVector": lambda: layers.RepeatVector(2),
    "Rescaling": lambda: layers.Rescaling(2.0, 1.0),
    "Reshape": lambda: layers.Reshape((3, 5)),
    "Resizing": lambda: layers.Resizing(4, 4),
    "ReversibleEmbedding": lambda: Tied(layers.ReversibleEmbedding(9, 3)),
    "STFTSpectrogram": lambda: layers.STFTSpectrogram("log", 4, 2, 4, expand_dims=False),
    "SeparableConv1D": lambda: layers.SeparableConv1D(2, 2),
    "SeparableConv2D": lambda: layers.SeparableConv2D(2, 2),
    "SimpleRNN": lambda: layers.SimpleRNN(2),
    "SimpleRNNCell": lambda: layers.RNN(layers.SimpleRNNCell(2)),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "SpatialDropout2D": lambda: layers.SpatialDropout2D(0.5),
    "SpatialDropout3D": lambda: layers.SpatialDropout3D(0.5),
    "SpectralNormalization": lambda: layers.SpectralNormalization(layers.Dense(3)),
    "StackedRNNCells": lambda: layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2), layers.GRUCell(2)])),
    "StringLookup": lambda: layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot"),
    "TextVectorization": lambda: layers.TextVectorization(vocabulary=["a", "b"], output_mode="count"),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3)),
}

SHAPES = {
    **dict.fromkeys(
        ["AdditiveAttention", "Attention", "Bidirectional", "EinsumDense", "GRU", "GRUCell", "GroupQueryAttention"]
        + ["LSTM", "LSTMCell", "Masking", "MultiHeadAttention", "Permute", "RNN", "Reshape", "SimpleRNN", "Dot"]
        + ["SimpleRNNCell", "StackedRNNCells", "TimeDistributed"],
        "sequence",
    ),
    **dict.fromkeys(
        ["AugMix", "AutoContrast", "CenterCrop", "ContrastLimitedAdaptiveHistogramEqualization", "CutMix", "MixUp"]
        + ["Equalization", "GroupNormalization", "Pipeline", "RandAugment", "Resizing", "Solarization"],
        "image",
    ),
    **dict.fromkeys(["ConvLSTM1D"], "image"),
    **dict.fromkeys(["ConvLSTM2D"], "video"),
    **dict.fromkeys(["ConvLSTM3D"], "long video"),
    "MelSpectrogram": "signal",
    "STFTSpectrogram": "channel",
    **dict.fromkeys(["CategoryEncoding", "Embedding", "Hashing", "IntegerLookup", "ReversibleEmbedding"], "tokens"),
    **dict.fromkeys(["HashedCrossing", "StringLookup", "TextVectorization"], "words"),
}
# Layers that join several inputs, and how many.
JOINING = {
    **dict.fromkeys(["Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"], 2),
    **dict.fromkeys(["AdditiveAttention", "Attention", "HashedCrossing"], 2),
}
SELF_ATTENTION = ("MultiHeadAttention", "GroupQueryAttention")
# Layers that give no gradient to their inputs, or take them as they are in the data.
ON_DATA = {"CategoryEncoding", "Discretization", "STFTSpectrogram", "MelSpectrogram"}


class Inside(layers.Layer):
    """Calls a layer.

    Args:
        layer: Any layer that keeps the shape of its inputs.
    """

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


class Tied(layers.Layer):
    """Calls an embedding in both directions, with the same weights.

    Args:
        embedding: A `ReversibleEmbedding`.
    """

    def __init__(self, embedding: layers.Layer):
        super().__init__()
        self.embedding = embedding

    def build(self, input_shape: Any) -> None:
        self.embedding.build(input_shape)

    def call(self, inputs: Any) -> Any:
        embedding: Any = self.embedding
        return embedding(embedding(inputs), reverse=True)


class Padded(layers.Layer):
    """Makes a ragged tensor dense, as long as the longest row of the data."""

    def call(self, inputs: Any) -> Any:
        if isinstance(inputs, tf.RaggedTensor):
            return inputs.to_tensor(shape=(None, 5, *inputs.shape[2:]))
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], 5, *input_shape[2:])


@dataclass(frozen=True)
class LayerCase:
    """How a layer stands in a model.

    Attributes:
        name: Its name in `keras.layers`.
        kind: What it is called on, a key of `SHAPES_OF_KINDS`.
        make: Makes it.
    """

    name: str
    kind: str
    make: Callable[[], Any]

    def branch(self, inputs: Any, variant: str = "plain") -> Any:
        """Returns one number per row: a trained layer, the layer, and another trained one.

        Args:
            inputs: A `keras.Input` of the kind.
            variant: One of `VARIANTS`.
        """
        label = self.name.lower()
        takes_data = self.kind in ("tokens", "words") or self.name in ON_DATA
        joined = JOINING.get(self.name, 1)
        if variant == "masked":
            is_sequence = self.kind == "sequence"
            inputs = layers.Masking(0.5)(inputs) if is_sequence else layers.Embedding(9, 3, mask_zero=True)(inputs)
            takes_data = False
        before = [inputs if takes_data else layers.Dense(3, name=f"{label}_before_{i}")(inputs) for i in range(joined)]
        layer = self.make()
        if self.name in SELF_ATTENTION:
            outputs = layer(before[0], before[0])
        else:
            outputs = layer(before if joined > 1 else before[0])
        if variant == "ragged":
            outputs = Padded()(outputs)
        if keras.backend.standardize_dtype(outputs.dtype) in ("int32", "int64", "bool"):
            outputs = keras.ops.cast(outputs, "float32")
        flat = layers.Flatten(name=f"{label}_flat")(outputs)
        return layers.Dense(1, name=f"{label}_after", dtype="float32")(flat)


def layer_cases() -> list[LayerCase]:
    """Returns a case for every public layer; a new layer of Keras is among them.

    Raises:
        ValueError: Names layers that cannot be made, or called, without a line in this file.
    """
    cases, unknown, done = [], [], set()
    for name in dir(layers):
        kind = getattr(layers, name)
        if not inspect.isclass(kind) or name in NOT_IN_A_MODEL or kind in done:
            continue
        done.add(kind)
        case = LayerCase(name, _kind_of(name), ARGUMENTS.get(name, kind))
        try:
            inputs = _input(case.kind)
            keras.Model(inputs, case.branch(inputs))
        except Exception as error:  # whatever a layer raises that is called in the wrong way
            unknown.append(f"{name}: {str(error).splitlines()[0][:150]}")
            continue
        cases.append(case)
    if unknown:
        raise ValueError(
            "Every layer of Keras stands in a model. These cannot be made or called with what is known of them. Add a "
            "line to the table: how it is made to `ARGUMENTS`, what it is called on to `SHAPES`, or the reason why it "
            "is in no model to `NOT_IN_A_MODEL`, in scripts/keras_cases.py.\n  " + "\n  ".join(unknown)
        )
    return cases


def _kind_of(name: str) -> str:
    by_dimension = {"1D": "sequence", "2D": "image", "3D": "volume"}
    of_images = name.startswith("Random")
    base = name.removesuffix("Transpose")
    return SHAPES.get(name) or by_dimension.get(base[-2:]) or ("image" if of_images else "vector")


def _input(kind: str, variant: str = "plain") -> Any:
    dtype = {"tokens": "int32", "words": "string"}.get(kind, "float32")
    if variant == "ragged":
        return keras.Input((None,), dtype=dtype, ragged=True)
    return keras.Input(SHAPES_OF_KINDS[kind], dtype=dtype)


def data_for(kind: str, outputs: int, variant: str = "plain") -> tf.data.Dataset:
    """Returns batches for a model of some branches.

    Args:
        kind: Of the inputs.
        outputs: Numbers per row in the targets.
        variant: One of `VARIANTS`.
    """
    random, shape = np.random.default_rng(0), (BATCH * BATCHES, *SHAPES_OF_KINDS[kind])
    if kind == "words":
        x: Any = random.choice(["a", "b", "c"], shape)
    elif kind == "tokens":
        x = random.integers(0, 4, shape).astype("int32")
    else:
        x = random.uniform(size=shape).astype("float32")
        if len(shape) > 2:
            x[:, 1] = 0.5  # rows that a `Masking(0.5)` masks
    y = random.standard_normal((len(x), outputs)).astype("float32")
    if variant == "ragged":
        ragged: Any = tf.RaggedTensor
        x = ragged.from_tensor(x, lengths=[min(1 + i, x.shape[1]) for i in range(len(x))])
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def model_of(cases: Iterable[LayerCase], variant: str = "plain") -> keras.Model:
    """Makes a model with a branch for every case, all of one kind.

    Args:
        cases: At least one.
        variant: One of `VARIANTS`.
    """
    cases = list(cases)
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    with policy_of(variant):
        inputs = _input(cases[0].kind, variant)
        outputs = [case.branch(inputs, variant) for case in cases]
        return keras.Model(inputs, layers.Concatenate(name="all")(outputs) if len(outputs) > 1 else outputs[0])


@contextmanager
def policy_of(variant: str) -> Iterator[None]:
    """Makes models of the precision of a variant within the block."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(variant if variant.startswith("mixed") else policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def variants_of(kind: str) -> list[str]:
    """Returns the variants in which a layer of a kind can be tried."""
    takes = {"masked": kind in ("sequence", "tokens"), "ragged": kind in ("tokens", "words")}
    return [variant for variant in VARIANTS if takes.get(variant, True)]
