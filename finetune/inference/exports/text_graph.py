"""Tokenization of BERT's kind as operations of TensorFlow and TensorFlow Text, with the token ids of training.

TensorFlow Text normalizes texts in another way than the package `tokenizers`: it folds case (`ß` becomes `ss`), and
makes other characters of full-width ones. So the steps of `tokenizers` (its `BertNormalizer`) are repeated here, in
their order, and `FastBertTokenizer` takes texts that it need not normalize. The ids are then equal, but for characters
that the Unicode tables of the two know differently and for words of more than 100 bytes: `first_difference` compares
them for the texts at hand.
"""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.tokenizer_file import TokenizerFile, open_tokenizer
from finetune.data.tokens import buckets_up_to
from finetune.inference.prepared_inputs import encoder_of
from finetune.inference.record import InputRecord, RunRecord

LIBRARY = "tensorflow_text"
COMPARED_TEXTS = 2048  # at most
TOKENIZED_OTHERWISE = (
    "words of more than 100 bytes, special tokens such as `[SEP]` within a text, and characters new in Unicode can "
    "become other token ids than at training"
)
_LONGEST_WORD = 100  # characters for `tokenizers`, bytes for TensorFlow Text

TextGraph = Callable[[Any], dict[str, Any]]


def text_graph(record: RunRecord, each: InputRecord) -> TextGraph | None:
    """Returns the function that makes token ids of texts in a graph; `None` where the tokenizer is of another kind.

    Args:
        record: What the run says.
        each: An input of kind `tokens`.

    Returns:
        A function of texts, shape `(rows,)`, that returns `ids`, `types` and `mask` of shape `(rows, width)`, int32.
    """
    file = (record.recipe["data"].get("tokenizer") or {}).get("file")
    if not file or len(each.columns) > 1 or find_spec(LIBRARY) is None:
        return None
    pad_token = record.recipe["data"]["tokenizer"].get("pad_token")
    tokenizer = open_tokenizer(record.kept_file(file), pad_token=pad_token)
    about = json.loads(tokenizer.encoder.to_str())
    special = _special(tokenizer)
    if not _is_of_bert(about) or special is None:
        return None
    import tensorflow_text

    vocabulary = sorted(about["model"]["vocab"], key=about["model"]["vocab"].get)
    bert: Any = tensorflow_text.FastBertTokenizer(
        vocabulary,
        max_bytes_per_word=_LONGEST_WORD,
        token_out_type=tf.int32,  # pyright: ignore[reportArgumentType] - the same class by another name
        unknown_token=about["model"]["unk_token"],
        lower_case_nfd_strip_accents=False,
    )
    length, pad_id = int(each.fitted["length"]), tokenizer.pad_id
    room = length - sum(map(len, special))
    padding = record.source.get("padding", "length")

    def make(texts: Any) -> dict[str, Any]:
        pieces = bert.tokenize(_normalized(texts, about["normalizer"]))[:, :room]
        first, last = (tf.tile(tf.constant([part], tf.int32), [tf.size(texts), 1]) for part in special)
        whole: Any = tf.concat([first, pieces, last], axis=1)
        lengths = whole.row_lengths()
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        buckets = tf.constant(buckets_up_to(length), tf.int64)
        bucket = tf.reduce_min(tf.boolean_mask(buckets, buckets >= longest))
        width = {"buckets": bucket, "longest": longest}.get(padding, tf.constant(length, tf.int64))
        ids: Any = whole.to_tensor(pad_id)
        paddings: Any = [[0, 0], [0, width - tf.shape(ids, tf.int64)[1]]]
        ids = tf.pad(ids, paddings, constant_values=pad_id)
        return {"ids": ids, "types": tf.zeros_like(ids), "mask": tf.sequence_mask(lengths, width, tf.int32)}

    return make


def _is_of_bert(about: dict[str, Any]) -> bool:
    """Returns whether a tokenizer normalizes, splits and looks up as BERT does, by its settings."""
    model, normalizer = about.get("model") or {}, about.get("normalizer") or {}
    ids = sorted((model.get("vocab") or {}).values()) if isinstance(model.get("vocab"), dict) else []
    return (
        model.get("type") == "WordPiece"
        and model.get("continuing_subword_prefix") == "##"
        and model.get("max_input_chars_per_word") == _LONGEST_WORD
        and bool(ids)
        and ids == list(range(len(ids)))
        and normalizer.get("type") == "BertNormalizer"
        and bool(normalizer.get("clean_text") and normalizer.get("handle_chinese_chars"))
        and (about.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and (about.get("truncation") or {}).get("direction", "Right") == "Right"
    )


def _special(tokenizer: TokenizerFile) -> tuple[list[int], list[int]] | None:
    """Returns the ids before and after those of a text; `None` where they depend on the text, or have a type."""
    encoder = tokenizer.encoder
    encoder.no_truncation()
    plain, whole = encoder.encode("a", add_special_tokens=False).ids, encoder.encode("a")
    starts = [at for at in range(len(whole.ids)) if whole.ids[at : at + len(plain)] == plain]
    if not plain or len(starts) != 1 or any(whole.type_ids):
        return None
    return whole.ids[: starts[0]], whole.ids[starts[0] + len(plain) :]


def _normalized(texts: Any, settings: dict[str, Any]) -> Any:
    """Returns texts as `BertNormalizer` of `tokenizers` makes them, without the spaces around Chinese characters."""
    texts = tf.strings.regex_replace(texts, r"[\t\n\r\p{Z}]", " ")
    texts = tf.strings.regex_replace(texts, r"[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]", "")
    is_lower, strips = bool(settings.get("lowercase")), settings.get("strip_accents")
    if is_lower if strips is None else strips:
        import tensorflow_text

        texts = tf.strings.regex_replace(tensorflow_text.normalize_utf8(texts, "NFD"), r"\p{Mn}", "")
    if not is_lower:
        return texts
    # TensorFlow makes another letter of a sigma that ends a word.
    return tf.strings.lower(tf.strings.regex_replace(texts, "\u03a3", "\u03c3"), encoding="utf-8")


def first_difference(make: TextGraph, record: RunRecord, each: InputRecord, texts: Sequence[str]) -> int | None:
    """Returns the number of the first text whose token ids differ from those of training; `None` without such.

    Args:
        make: What `text_graph` returned.
        record: What the run says.
        each: The input.
        texts: The texts, at least one.
    """
    ids, _, lengths, _ = encoder_of(record, each)[0]([(text,) for text in texts])
    made = make(tf.constant([text.encode() for text in texts]))
    is_token = made["mask"].numpy().astype(bool)
    ends = np.cumsum(lengths)[:-1]
    rows = zip(np.split(ids, ends), made["ids"].numpy(), is_token, strict=True)
    return next((n for n, (expected, row, kept) in enumerate(rows) if list(expected) != list(row[kept])), None)
