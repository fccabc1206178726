"""One tiny model for every public loss, regularizer, constraint and initializer of Keras.

They are found in Keras' namespaces, as the layers of `keras_cases.py` are.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras_cases import BATCH, policy_of

ABSTRACT = {"Loss", "Regularizer", "Constraint", "Initializer"}
ARGUMENTS_OF_OTHERS: dict[str, Callable[[], Any]] = {
    "CategoricalGeneralizedCrossEntropy": lambda: keras.losses.CategoricalGeneralizedCrossEntropy(0.5),
    "STFT": lambda: keras.initializers.STFT("real"),
}
# Losses whose targets are classes, and those whose inputs are sequences of them.
OF_CLASSES = ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy", "Circle")
OF_SEQUENCES = ("CTC",)


@dataclass(frozen=True)
class MemberCase:
    """A loss, or what stands on a weight.

    Attributes:
        name: Its namespace and its name.
        kind: `loss` or `weight`.
    """

    name: str
    kind: str


def member_cases() -> list[MemberCase]:
    """Returns a case for every loss, regularizer, constraint and initializer."""
    of_losses = [MemberCase(f"losses.{name}", "loss") for name in members_of(keras.losses)]
    return of_losses + [MemberCase(name, "weight") for name in weight_settings()]


def members_of(namespace: Any) -> dict[str, Any]:
    """Makes every public member of `keras.losses`, `regularizers`, `constraints` or `initializers`, by its name.

    Args:
        namespace: One of these modules.

    Raises:
        ValueError: Names a member that cannot be made without arguments.
    """
    made, done = {}, set()
    for name in dir(namespace):
        kind = getattr(namespace, name)
        if not inspect.isclass(kind) or name in ABSTRACT or kind in done:
            continue
        done.add(kind)
        try:
            made[name] = ARGUMENTS_OF_OTHERS.get(kind.__name__, kind)()
        except TypeError as error:
            raise ValueError(
                f"`{name}` cannot be made without arguments: {error}. Add a line to `ARGUMENTS_OF_OTHERS` in "
                "scripts/keras_members.py."
            ) from error
    return made


def model_of_losses(
    cases: Iterable[MemberCase] | None = None, variant: str = "plain"
) -> tuple[keras.Model, dict[str, Any], tf.data.Dataset]:
    """Returns a model with an output for every loss, the losses by the names of the outputs, and batches.

    Args:
        cases: Of the kind `loss`; by default all.
        variant: One of `keras_cases.VARIANTS`, but `masked` and `ragged`.
    """
    keras.utils.set_random_seed(1)
    random, inputs = np.random.default_rng(0), keras.Input((4,))
    losses, outputs, targets = members_of(keras.losses), {}, {}
    if cases is not None:
        losses = {name: losses[name] for name in (case.name.removeprefix("losses.") for case in cases)}
    for name in losses:
        with policy_of(variant):
            body = layers.Dense(4, activation="tanh", name=f"{name}_body")(inputs)
        if name in OF_SEQUENCES:
            outputs[name] = layers.Dense(3, name=f"{name}_head")(layers.Reshape((4, 1))(body))
            targets[name] = random.integers(1, 3, (4, 2)).astype("int32")
        else:
            outputs[name] = layers.Dense(3, activation="softmax", name=f"{name}_head")(body)
            classes = random.integers(0, 3, 4)
            targets[name] = classes if name in OF_CLASSES else np.eye(3, dtype="float32")[classes]
    x = random.standard_normal((4, 4)).astype("float32")
    return keras.Model(inputs, outputs), losses, tf.data.Dataset.from_tensor_slices((x, targets)).batch(BATCH)


def weight_settings() -> dict[str, dict[str, Any]]:
    """Returns what layers are made with, by name: every regularizer, constraint and initializer where it can stand."""
    options: dict[str, dict[str, Any]] = {}
    for name, regularizer in members_of(keras.regularizers).items():
        options[f"regularizers.{name} kernel"] = {"kernel_regularizer": regularizer}
        if name != "OrthogonalRegularizer":  # which is for matrices
            options[f"regularizers.{name} bias"] = {"bias_regularizer": regularizer}
            options[f"regularizers.{name} activity"] = {"activity_regularizer": regularizer}
    for name, constraint in members_of(keras.constraints).items():
        options[f"constraints.{name}"] = {"kernel_constraint": constraint, "bias_constraint": constraint}
    for name, initializer in members_of(keras.initializers).items():
        if name != "STFT":  # which makes kernels of a `STFTSpectrogram` only
            options[f"initializers.{name}"] = {"kernel_initializer": initializer}
    return options


def model_of_weights(
    cases: Iterable[MemberCase] | None = None, variant: str = "plain"
) -> tuple[keras.Model, tf.data.Dataset]:
    """Returns a model in which every regularizer, constraint and initializer stands, and batches.

    Each is on the kernels of two layers: one of them like others, which are updated together, one updated alone.

    Args:
        cases: Of the kind `weight`; by default all.
        variant: One of `keras_cases.VARIANTS`, but `masked` and `ragged`.
    """
    keras.utils.set_random_seed(1)
    inputs, settings_of = keras.Input((4,)), weight_settings()
    outputs = []
    with policy_of(variant):
        for i, name in enumerate(settings_of if cases is None else (case.name for case in cases)):
            label, settings = name.replace(" ", "_"), settings_of[name]
            # What has a constraint lies in no buffer, nor what is like it.
            width = 6 if name.startswith("constraints.") else 4
            alike = layers.Dense(width, activation="tanh", name=f"{label}_alike", **settings)(inputs)
            single = {"kernel_initializer": "he_normal"} if name.startswith("initializers.Identity") else settings
            outputs.append(layers.Dense(7 + i, name=f"{label}_alone", **single)(alike))
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 4)).astype("float32")
    y = random.standard_normal((4, sum(output.shape[-1] for output in outputs))).astype("float32")
    outputs = [layers.Activation("linear", dtype="float32")(output) for output in outputs]
    joined = layers.Concatenate()(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, joined), tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
