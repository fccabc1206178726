"""Features of `tf.train.Example`s: how each is read, looked up in the first records or said by the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.errors import DataError, PartError, did_you_mean, quote
from finetune.machine_failures import raise_machine_failure

LOOKED_AT = 100  # records
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")  # how the formats of images begin
_STORED: dict[str, Any] = {"int64_list": tf.int64, "float_list": tf.float32, "bytes_list": tf.string}


@dataclass(frozen=True)
class Feature:
    """How a feature is read.

    Attributes:
        stored: Type in which the record keeps it: int64, float32 or string.
        dtype: Type of its values.
        shape: Shape of its values.
        length: For lists of any length, to which they are cut or filled up with 0; else `None`.
        is_image: Whether its bytes are an image.
        size: Height and width of the image, where they are known.
    """

    stored: str
    dtype: str
    shape: tuple[int, ...] = ()
    length: int | None = None
    is_image: bool = False
    size: tuple[int, int] | None = None

    def described(self) -> str:
        """Returns it as words, such as `float32 of shape (10,)`."""
        if self.is_image:
            return "image" + (f" of {self.size[0]}x{self.size[1]}" if self.size else "")
        shape = f" of length {self.length}" if self.length else f" of shape {self.shape}" if self.shape else ""
        return f"{self.dtype}{shape}"


def make_feature(
    dtype: str | None, shape: tuple[int, ...] = (), length: int | None = None, size: tuple[int, int] | None = None
) -> Feature:
    """Returns a feature that the user has described.

    Args:
        dtype: Type of its values; `None` for an image.
        shape: Shape of its values.
        length: Length of lists of any length.
        size: Height and width of an image.
    """
    if dtype is None:
        return Feature("string", "uint8", is_image=True, size=size)
    kind = tf.as_dtype(dtype)
    stored = "string" if kind == tf.string else "float32" if kind.is_floating else "int64"
    return Feature(stored, dtype, shape, length)


def look_at(records: Sequence[bytes]) -> dict[str, Feature | str]:
    """Returns how the features of records look, by name; for those that fit no description, why.

    Args:
        records: Serialized `tf.train.Example`s.

    Raises:
        DataError: The records are no examples.
    """
    seen: dict[str, list[tuple[str, list[Any]]]] = {}
    for index, record in enumerate(records):
        example = tf.train.Example()
        try:
            example.ParseFromString(record)
        except Exception as error:  # protobuf's own class moves from version to version
            raise_machine_failure(error, f"Reading record {index}")
            raise DataError(f"Records must be `tf.train.Example`s. Record {index} is not: {error}.") from error
        for name, feature in example.features.feature.items():
            kind = feature.WhichOneof("kind")
            if kind:
                seen.setdefault(name, []).append((kind, list(getattr(feature, kind).value)))
    if not seen:
        raise DataError(
            "Records must be `tf.train.Example`s with features. The first have none: they may be other bytes, or "
            "`tf.train.SequenceExample`s, whose lists belong into features of one length."
        )
    return {name: _looks(values) for name, values in sorted(seen.items())}


def _looks(values: list[tuple[str, list[Any]]]) -> Feature | str:
    kinds, lengths = {kind for kind, _ in values}, {len(value) for _, value in values}
    if len(kinds) > 1:
        return f"has several types: {quote(sorted(kinds))}"
    stored = _STORED[kinds.pop()].name
    if len(lengths) > 1:
        counts = f"{min(lengths)} to {max(lengths)} values of type `{stored}`"
        return f"has {counts}: say how long it becomes, with `length`"
    [length] = lengths
    if stored == "string" and length == 1 and all(value[0].startswith(_IMAGES) for _, value in values):
        return Feature("string", "uint8", is_image=True)
    return Feature(stored, stored, () if length == 1 else (length,))


def check_features(names: Sequence[str], described: Mapping[str, Feature], looks: Mapping[str, Any]) -> None:
    """Checks that features exist, and are stored as they are described.

    Args:
        names: The features that are needed.
        described: How they are read.
        looks: What `look_at` has returned.

    Raises:
        PartError: A feature is missing, is stored otherwise, or cannot be read without a description.
    """
    for name in names:
        if name not in looks:
            shown = ", ".join(f"`{each}` ({_said(look)})" for each, look in list(looks.items())[:9])
            said = f"Records have no feature `{name}`. They have {shown}.{did_you_mean(name, list(looks))}"
            raise PartError(said, name)
        look, feature = looks[name], described.get(name)
        if feature is None:
            raise PartError(f"`{name}` {look}: `features: {{{name}: {{dtype: ..., length: ...}}}}`.", name)
        if isinstance(look, Feature):
            count, size = int(np.prod(look.shape)), int(np.prod(feature.shape))
            if look.stored != feature.stored or (feature.length is None and count != size):
                raise PartError(
                    f"A feature is read as it is stored. `{name}` is {look.described()}, and `features` says "
                    f"{feature.described()}. Correct it.",
                    name,
                )


def _said(look: Feature | str) -> str:
    return look.described() if isinstance(look, Feature) else look.partition(":")[0]


def parse(serialized: Any, features: Mapping[str, Feature]) -> dict[str, Any]:
    """Returns the values of features of a record; images as their bytes. Runs in graphs.

    Args:
        serialized: The record, a string.
        features: The features to read, by name.
    """
    spec: dict[str, Any] = {}
    for name, feature in features.items():
        stored = tf.as_dtype(feature.stored)
        is_list = feature.length is not None
        spec[name] = tf.io.VarLenFeature(stored) if is_list else tf.io.FixedLenFeature(feature.shape, stored)
    values = tf.io.parse_single_example(serialized, spec)
    return {name: _value(values[name], feature) for name, feature in features.items()}


def feature_bytes(serialized: bytes, name: str) -> bytes:
    """Returns a feature of a record as it is stored; equal features have equal bytes."""
    return tf.train.Example.FromString(serialized).features.feature[name].SerializeToString(deterministic=True)


def _value(value: Any, feature: Feature) -> Any:
    if feature.length is not None:
        value = tf.sparse.to_dense(value)[: feature.length]
        count: Any = tf.shape(value)[0]
        missing: Any = [[0, feature.length - count]]
        value = tf.pad(value, missing, constant_values="" if feature.stored == "string" else 0)
        value = tf.ensure_shape(value, (feature.length,))
    is_cast = not feature.is_image and feature.dtype != feature.stored
    return tf.cast(value, tf.as_dtype(feature.dtype)) if is_cast else value
