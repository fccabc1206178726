"""Token ids of all texts, one text after another, and the rows that networks take: filled up to a common length.

Nothing is filled up beforehand, so that short texts cost no memory. A row is filled up when it is taken: to the full
length, or with the other rows of its batch to the first bucket that holds the longest of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tensorflow as tf

from finetune.data.rows import Rows, tensor_rows
from finetune.data.token_files import keep_tokens, kept_tokens
from finetune.data.tokenizer_file import Encode

_AT_ONCE = 1024  # texts
Part = Literal["ids", "mask", "types"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of texts, one text after another.

    Attributes:
        ids: The ids, int32 of shape `(tokens,)`.
        types: The type of each token, 1 for those of a second text; `None` where all are 0.
        lengths: How many tokens each text has, int64 of shape `(texts,)`.
        cut: How many texts were longer.
        highest: The largest id.
        key: A hash of all that they depend on.
        reused: Whether they were read from a cache.
    """

    ids: Rows
    types: Rows | None
    lengths: np.ndarray
    cut: int
    highest: int
    key: str
    reused: bool = False


@dataclass(frozen=True, eq=False)
class RowsOfTexts(Sequence[tuple[str, ...]]):
    """The texts of each row, which become Python's strings when they are taken.

    Attributes:
        columns: The first text of every row, and the second where there are two, each of shape `(rows,)`.
    """

    columns: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return list(zip(*(column[index].tolist() for column in self.columns), strict=True))
        return tuple(str(column[index]) for column in self.columns)


def tokenize(texts: Sequence[tuple[str, ...]], encode: Encode, settings: str, *, cache: Path | None = None) -> Tokens:
    """Turns texts into token ids, some at a time.

    Args:
        texts: The text, or the two texts, of each row; at least a row.
        encode: Encodes some of them.
        settings: All that the ids depend on beside the texts: the tokenizer, its version, the length.
        cache: A folder in which the ids are kept, and looked for; without, they are kept in memory.

    Raises:
        DataError: The folder cannot be written to.
    """
    digest = hashlib.sha256(f"{settings} {len(texts[0])}".encode())
    for start in range(0, len(texts), _AT_ONCE):
        for text in chain.from_iterable(texts[start : start + _AT_ONCE]):
            encoded = text.encode("utf-8", "surrogatepass")
            # With lengths, so that `ab`, `c` is not `a`, `bc`.
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    key = digest.hexdigest()[:32]
    known = kept_tokens(cache, key) if cache else None
    parts = (encode(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE))
    if cache and known is None:
        keep_tokens(cache, key, parts)
        known = kept_tokens(cache, key)
        assert known, "what was written a moment ago can be read"
        return Tokens(*known, key=key)
    if known:
        return Tokens(*known, key=key, reused=True)
    every = [np.concatenate(each) for each in zip(*parts, strict=True)]
    ids, types, lengths, cut = every
    # A gather needs a value to read, also where no text has a token.
    with tf.device("CPU:0"):
        rows = [tensor_rows(tf.constant(values if len(values) else [0], tf.int32)) for values in (ids, types)]
    return Tokens(rows[0], rows[1] if types.any() else None, lengths, int(cut.sum()), int(ids.max(initial=0)), key)


def buckets_up_to(length: int) -> tuple[int, ...]:
    """Returns the lengths to which batches are filled up: 16, 24, 32, 48, 64, 96 and so on, and `length` itself.

    A bucket is at most half as long again as the one before, so that not more than a third of a batch is padding
    because of the buckets, and that there are few of them: each is a shape of its own to compile where XLA is used.

    >>> buckets_up_to(100)
    (16, 24, 32, 48, 64, 96, 100)
    """
    steps = sorted({16 << n for n in range(40)} | {24 << n for n in range(40)})
    return (*(step for step in steps if step < length), length)


def width_of_batches(tokens: Tokens, length: int, padding: str) -> Callable[[Any], Any] | None:
    """Returns the function that says to how many tokens a batch of rows is filled up; `None` for `length`.

    Args:
        tokens: The tokens.
        length: Tokens of a row at most.
        padding: `length`, `buckets` or `longest`.
    """
    if padding == "length":
        return None
    with tf.device("CPU:0"):
        lengths = tf.constant(tokens.lengths, tf.int64)
        edges = tf.constant(buckets_up_to(length), tf.int64)

    def width(indices: Any) -> Any:
        longest = tf.reduce_max(tf.gather(lengths, indices))
        if padding == "longest":
            return tf.maximum(longest, 1)
        return tf.gather(edges, tf.reduce_sum(tf.cast(longest > edges, tf.int32)))

    return width


def token_rows(
    tokens: Tokens, part: Part, *, length: int, pad_id: int = 0, width: Callable[[Any], Any] | None = None
) -> Rows:
    """Returns rows of token ids, of their mask, or of their types.

    Args:
        tokens: The tokens.
        part: `ids`; `mask`, 1 where there are tokens; or `types`. The last two are 0 where there are none.
        length: Tokens of a row at most, >= all `tokens.lengths`.
        pad_id: What ids are filled up with.
        width: To how many tokens batches are filled up, `width_of_batches`; by default to `length`.
    """
    with tf.device("CPU:0"):
        lengths = tf.constant(tokens.lengths, tf.int64)
        starts = tf.constant(np.cumsum(tokens.lengths) - tokens.lengths, tf.int64)
    source = {"ids": tokens.ids, "types": tokens.types, "mask": None}[part]

    def take(indices: Any) -> Any:
        places = tf.range(length, dtype=tf.int64)[tf.newaxis]
        is_token = places < tf.gather(lengths, indices)[:, tf.newaxis]
        if source is None:
            return tf.cast(is_token if part == "mask" else tf.zeros_like(is_token), tf.int32)
        places = tf.where(is_token, tf.gather(starts, indices)[:, tf.newaxis] + places, 0)
        return tf.where(is_token, source.take(places), pad_id if part == "ids" else 0)

    fingerprint = hashlib.sha256(f"{tokens.key} {part} {length} {pad_id}".encode()).hexdigest()
    return Rows(len(tokens.lengths), take, fingerprint, batch_width=width, is_ready=True)
