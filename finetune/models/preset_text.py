"""Text to token ids as the preprocessor does it that a KerasHub preset brings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.errors import FinetuneError, reason
from finetune.machine_failures import raise_machine_failure

_AT_ONCE = 1024  # texts


def preset_token_ids(preset: str, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Turns texts into token ids with the preprocessor of a preset, its start and end tokens included.

    Args:
        preset: A local folder, or a handle that KerasHub can resolve.
        texts: The texts.
        length: Tokens of each row; by default those of the preset. Longer texts are cut, shorter ones padded.

    Returns:
        Int32 ids of shape `(rows, length)`, and what was done.

    Raises:
        FinetuneError: The preset brings no preprocessor for text.
    """
    import keras_hub  # optional, and takes seconds; the network of the preset has been loaded with it

    try:
        options: dict[str, Any] = {} if length is None else {"sequence_length": length}
        preprocessor: Any = keras_hub.models.TextClassifierPreprocessor.from_preset(preset, **options)
        special = int(np.asarray(preprocessor([""])["padding_mask"]).sum())
    except Exception as error:  # KerasHub raises errors of many classes
        raise_machine_failure(error, f"Loading the preprocessor of `{preset}`")
        raise FinetuneError(
            f"Text becomes token ids by the preprocessor of the preset. `{preset}` has none for text: "
            f"{type(error).__name__}: {reason(error)}. Name a tokenizer: "
            "`tokenizer: {file: tokenizer.json, length: 64}`."
        ) from error
    parts, longest, cut, length = [], 0, 0, int(preprocessor.sequence_length)
    for start in range(0, len(texts), _AT_ONCE):
        some = list(texts[start : start + _AT_ONCE])
        parts.append(np.asarray(preprocessor(some)["token_ids"], np.int32))
        counts = np.array([len(tokens) for tokens in preprocessor.tokenizer(some)]) + special
        longest, cut = max(longest, int(counts.clip(max=length).max())), cut + int((counts > length).sum())
    about = {"tokenizer": preset, "length": length, "cut": cut, "longest": longest}
    return np.concatenate(parts), about | {"vocabulary": int(preprocessor.tokenizer.vocabulary_size())}
