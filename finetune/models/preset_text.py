"""Text to token ids as the preprocessor does it that a KerasHub preset brings."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.errors import FinetuneError, reason
from finetune.machine_failures import raise_machine_failure


@dataclass(frozen=True, eq=False)
class PresetText:
    """The preprocessor of a preset.

    Attributes:
        encode: Turns texts, or pairs of texts, into their token ids one after another, the type of each token, the
            number of tokens of each text, and whether each was cut; start and end tokens included.
        length: Tokens of a row at most.
        vocabulary: How many tokens the tokenizer has.
        pad_id: The id of its padding token.
        digest: A hash of its settings and its vocabulary.
    """

    encode: Callable[[Sequence[tuple[str, ...]]], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    length: int
    vocabulary: int
    pad_id: int
    digest: str


def preset_text(preset: str, length: int | None = None, texts: int = 1) -> PresetText:
    """Opens the preprocessor of a preset.

    Args:
        preset: A local folder, or a handle that KerasHub can resolve.
        length: Tokens of a row at most; by default those of the preset. Longer texts are cut.
        texts: How many texts make a row, 1 or 2.

    Raises:
        FinetuneError: The preset brings no preprocessor for text.
    """
    import keras_hub  # optional, and takes seconds; the network of the preset has been loaded with it

    try:
        options: dict[str, Any] = {} if length is None else {"sequence_length": length}
        preprocessor: Any = keras_hub.models.TextClassifierPreprocessor.from_preset(preset, **options)
        if not preprocessor.built:
            preprocessor.build(None)
        empty: Any = ("",) * texts
        special = len(_packed(preprocessor, [empty])[0])
        tokenizer = preprocessor.tokenizer
        settings = {"keras_hub": keras_hub.__version__, "preprocessor": preprocessor.get_config()}
        settings["vocabulary"] = list(tokenizer.get_vocabulary())
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    except Exception as error:  # KerasHub raises errors of many classes
        raise_machine_failure(error, f"Loading the preprocessor of `{preset}`")
        raise FinetuneError(
            f"Text becomes token ids by the preprocessor of the preset. `{preset}` has none for text: "
            f"{type(error).__name__}: {reason(error)}. Name a tokenizer: "
            "`tokenizer: {file: tokenizer.json, length: 64}`."
        ) from error
    length = int(preprocessor.sequence_length)
    if length <= special:
        raise FinetuneError(
            f"A row must have room for tokens of its text. `length` is {length}, and the preset `{preset}` adds "
            f"{special} special tokens. Set at least {special + texts}."
        )

    def encode(rows: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        ids, types, lengths = _packed(preprocessor, rows)
        whole = np.full(len(rows), special)
        for column in zip(*rows, strict=True):
            whole += [len(tokens) for tokens in tokenizer(list(column))]
        return ids, types, lengths, whole > length

    return PresetText(encode, length, len(settings["vocabulary"]), int(tokenizer.pad_token_id or 0), digest)


def _packed(preprocessor: Any, rows: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, types and lengths of rows without what fills them up."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    # Not `preprocessor(...)`, which takes two columns for inputs and targets.
    packed = preprocessor.call(columns[0] if len(columns) == 1 else tuple(columns))
    ids, mask = np.asarray(packed["token_ids"], np.int32), np.asarray(packed["padding_mask"]).astype(bool)
    types = np.asarray(packed.get("segment_ids", np.zeros_like(ids)), np.int32)
    return ids[mask], types[mask], mask.sum(axis=1).astype(np.int64)
