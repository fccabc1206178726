"""The networks and batches that `bench_step.py` measures a training step on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A network with its data, and how often it is measured.

    Attributes:
        make: Makes the model and one batch `(x, y)`; the loss is the mean squared error.
        groups: Numbers of layer groups to measure.
        block: Steps in a block.
        rounds: Blocks of every system.
        policy: The dtype policy of all systems but the baseline, which is always in float32.
        frozen_layers: How many layers, counted from the input, all systems but the baseline freeze.
        peers: Name of the same network in the servers of `scripts/peers`, if they have it.
        systems: The systems that are measured on it; `None`: all.
    """

    make: Callable[[], tuple[keras.Model, Batch]]
    groups: tuple[int, ...]
    block: int
    rounds: int = 40
    policy: str = "float32"
    frozen_layers: int = 0
    peers: str | None = None
    systems: tuple[str, ...] | None = None

    @property
    def varies(self) -> bool:
        """Whether the baseline is trained otherwise: in float32, or whole."""
        return self.policy != "float32" or self.frozen_layers > 0

    @property
    def has_long_steps(self) -> bool:
        """Whether a call of the train function costs nothing beside its steps."""
        return self.block < 4

    def build(self, *, plain: bool = False) -> tuple[keras.Model, Batch]:
        """Makes the model; `plain` is that of the baseline."""
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32" if plain else self.policy)
        try:
            model, batch = self.make()
        finally:
            keras.config.set_dtype_policy(before)
        for layer in model.layers[: 0 if plain else self.frozen_layers]:
            layer.trainable = False
        return model, batch


def small_layers(number: int = 100) -> tuple[keras.Model, Batch]:
    """Dense layers of 64, batch 32: of 100 the 200 small variables are bound by the number of operations."""
    hidden = [layers.Dense(64, activation="relu") for _ in range(number - 1)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(64)])
    return model, (normal(32, 64), normal(32, 64))


def very_many_layers() -> tuple[keras.Model, Batch]:
    """500 dense layers of 16, batch 32: 1,000 variables, so that there can be as many groups."""
    hidden = [layers.Dense(16, activation="relu") for _ in range(499)]
    model = keras.Sequential([keras.Input((16,)), *hidden, layers.Dense(16)])
    return model, (normal(32, 16), normal(32, 16))


def small_resnet() -> tuple[keras.Model, Batch]:
    """A ResNet-20 for images of 32 by 32, batch 32: bound by its convolutions."""
    inputs = keras.Input((32, 32, 3))
    x = unit(inputs, 16, 1)
    for filters in (16, 32, 64):
        for block in range(3):
            strides = 2 if filters > 16 and block == 0 else 1
            kept = layers.Conv2D(filters, 1, strides)(x) if strides > 1 else x
            x = layers.Activation("relu")(layers.Add()([kept, unit(unit(x, filters, strides), filters, 1)]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    return model, (normal(32, 32, 32, 3), normal(32, 10))


def unit(x: Any, filters: int, strides: int) -> Any:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def transformer() -> tuple[keras.Model, Batch]:
    """Of the size of MiniLM-L6, random weights, sequences of 64, batch 16: 22.7 M parameters."""
    inputs = keras.Input((64,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(30522, 384)(inputs))
    for _ in range(6):
        attended = layers.MultiHeadAttention(12, 32)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        wide = layers.Dense(384)(layers.Dense(1536, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, wide]))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    return model, (np.random.default_rng(0).integers(0, 30522, (16, 64)), normal(16, 1))


def application(name: str, batch: int) -> tuple[keras.Model, Batch]:
    """A network of `keras.applications` with random weights, for images of 96 by 96."""
    make: Any = getattr(keras.applications, name)
    model = make(input_shape=(96, 96, 3), weights=None, classes=10, classifier_activation=None)
    return model, (255.0 * normal(batch, 96, 96, 3), normal(batch, 10))


def lstm() -> tuple[keras.Model, Batch]:
    """An LSTM of 128 over 64 steps, batch 32."""
    model = keras.Sequential([keras.Input((64, 32)), layers.LSTM(128), layers.Dense(1)])
    return model, (normal(32, 64, 32), normal(32, 1))


def bert_tiny() -> tuple[keras.Model, Batch]:
    """BERT-tiny of KerasHub with dropout, of two layers of 128, 16 texts of 64 of which a part is padding."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(30522, num_layers=2, num_heads=2, hidden_dim=128, intermediate_dim=512)
    tokens = keras.Input((64,), dtype="int32")
    inputs = {"token_ids": tokens, "segment_ids": 0 * tokens, "padding_mask": tokens != 0}
    model = keras.Model(tokens, layers.Dense(1)(backbone(inputs)["pooled_output"]))
    rng = np.random.default_rng(0)
    texts = rng.integers(1, 30522, (16, 64)) * (np.arange(64) < rng.integers(20, 65, (16, 1)))
    return model, (texts, normal(16, 1))


def small_vit() -> tuple[keras.Model, Batch]:
    """A vision transformer of six layers of 192, 16 images of 64 by 64 in 64 patches."""
    inputs = keras.Input((64, 64, 3))
    x = layers.Reshape((64, 192))(layers.Conv2D(192, 8, 8)(inputs))
    for _ in range(6):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(3, 64)(y, y)])
        wide = layers.Dense(768, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(192)(wide)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x)), (normal(16, 64, 64, 3), normal(16, 10))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def parts(model: keras.Model, groups: int) -> list[list[keras.Variable]]:
    """Cuts the trainable variables into groups, input to output: between layers, or if these are too few in them."""
    layered = [layer.trainable_variables for layer in model.layers if layer.trainable_variables]
    units = layered if groups <= len(layered) else [[v] for v in model.trainable_variables]
    if groups > len(units):
        raise SystemExit(f"{groups} groups need as many variables. The model has {len(units)} that are trained.")
    found = [[v for i in cut for v in units[i]] for cut in np.array_split(np.arange(len(units)), groups)]
    assert sum(map(len, found)) == len(model.trainable_variables)
    return found


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; without that it only costs time."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


EMBEDDINGS_AND_FOUR_LAYERS = 3 + 4 * 7  # input, embedding, its normalisation; each of six layers has seven parts

# The systems that differ on networks whose update costs next to nothing.
OF_KERNELS = ("Keras, one Adam", "finetune, own loop", "finetune, native kernels", "forward and backward alone")

WORKLOADS = {
    "small layers": Workload(small_layers, (1, 10, 100), 20, peers="small layers"),
    "resnet": Workload(small_resnet, (1, 8, 60), 4, peers="resnet"),
    "transformer": Workload(transformer, (1, 8, 100), 2, rounds=15, peers="transformer"),
    "transformer bfloat16": Workload(transformer, (1, 8, 100), 2, rounds=15, policy="mixed_bfloat16"),
    "transformer, four layers frozen": Workload(
        transformer, (1, 8, 30), 2, rounds=15, frozen_layers=EMBEDDINGS_AND_FOUR_LAYERS
    ),
    "mobilenet": Workload(lambda: application("MobileNetV2", 16), (1,), 1, rounds=15, systems=OF_KERNELS),
    "efficientnet": Workload(lambda: application("EfficientNetB0", 8), (1,), 1, rounds=15, systems=OF_KERNELS),
    "resnet50": Workload(lambda: application("ResNet50", 8), (1,), 1, rounds=15, systems=OF_KERNELS),
    "lstm": Workload(lstm, (1,), 2, rounds=15, systems=OF_KERNELS),
    "bert tiny": Workload(bert_tiny, (1,), 2, rounds=15, systems=OF_KERNELS),
    "vit": Workload(small_vit, (1,), 2, rounds=15, systems=OF_KERNELS),
    "groups curve": Workload(
        very_many_layers, (1, 3, 10, 30, 100, 300, 1000), 5, rounds=20, systems=("Keras, one Adam", "finetune")
    ),
}
NEEDS_BFLOAT16 = ("transformer bfloat16",)
