"""Tokenizers in files: a `tokenizer.json` of the package `tokenizers`, or the `vocab.txt` of an uncased BERT."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, did_you_mean, quote
from finetune.machine_failures import raise_machine_failure

_PADDING = ("[PAD]", "<pad>", "<PAD>", "[pad]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<blank>")
_FILES = ("tokenizer.json", "vocab.txt")

# Turns texts, or pairs of texts, into their token ids one after another (int32), the type of each token (int32, 1 for
# those of a second text), the number of tokens of each text, and whether each was cut.
Encode = Callable[[Sequence[tuple[str, ...]]], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class TokenizerFile:
    """A tokenizer that was read from a file.

    Attributes:
        path: The file.
        encoder: The tokenizer itself.
        vocabulary: How many tokens it has.
        pad_id: The id of the padding token; 0 where it has none.
        warning: What to know about the padding token; usually empty.
        digest: A hash of the file and of the version of `tokenizers`.
    """

    path: Path
    encoder: Any
    vocabulary: int
    pad_id: int
    warning: str
    digest: str


def open_tokenizer(path: str | Path, *, pad_token: str | None = None) -> TokenizerFile:
    """Reads a tokenizer.

    Args:
        path: A `tokenizer.json`, or the `vocab.txt` of an uncased BERT.
        pad_token: The token to fill rows up with; by default the padding token of the tokenizer, by its settings or
            by its name.

    Raises:
        DataError: It cannot be read, it does not have the padding token, or the package `tokenizers` is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The tokenizer is a `tokenizer.json` or a `vocab.txt`. {_instead(path)}")
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            "Text becomes token ids by the package `tokenizers`, which is not installed. Install it: "
            "`pip install 'discriminative-finetune[text]'`."
        ) from error
    try:
        if path.suffix == ".txt":
            from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

            # What wraps it lacks some of its settings.
            encoder: Any = tokenizers.Tokenizer.from_str(BertWordPieceTokenizer(str(path), lowercase=True).to_str())
        else:
            encoder = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain `Exception`
        raise_machine_failure(error, f"Reading `{path}`")
        raise DataError(
            f"The tokenizer is a `tokenizer.json` or a `vocab.txt`. `{path}` cannot be read as such: "
            f"{_content(path) or error}. {_beside(path)}"
        ) from error
    pad_id, warning = _padding(encoder, path, pad_token)
    encoder.no_padding()
    digest = hashlib.sha256(f"{tokenizers.__version__} {path.suffix}".encode() + path.read_bytes()).hexdigest()
    return TokenizerFile(path, encoder, int(encoder.get_vocab_size()), pad_id, warning, digest)


def encoding(tokenizer: TokenizerFile, length: int, texts: int = 1) -> Encode:
    """Returns the function that encodes texts.

    Args:
        tokenizer: The tokenizer.
        length: Tokens of a row at most. Of a pair the longer text is cut first.
        texts: How many texts make a row, 1 or 2; what is between them is the tokenizer's to say.

    Raises:
        DataError: The special tokens alone are longer than that.
    """
    encoder = tokenizer.encoder
    special = encoder.num_special_tokens_to_add(texts > 1)
    if length <= special:
        raise DataError(
            f"A row must have room for tokens of its text. `length` is {length}, and `{tokenizer.path.name}` adds "
            f"{special} special tokens to {'a pair' if texts > 1 else 'every text'}. Set at least {special + texts}."
        )
    direction = (encoder.truncation or {}).get("direction", "right")
    encoder.enable_truncation(length, strategy="longest_first", direction=direction)

    def encode(rows: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        encodings = encoder.encode_batch([row if texts > 1 else row[0] for row in rows])
        ids = np.concatenate([np.array(each.ids, np.int32) for each in encodings])
        types = np.concatenate([np.array(each.type_ids, np.int32) for each in encodings])
        lengths = np.array([len(each.ids) for each in encodings], np.int64)
        return ids, types, lengths, np.array([bool(each.overflowing) for each in encodings])

    return encode


def _padding(encoder: Any, path: Path, written: str | None) -> tuple[int, str]:
    """Returns the id of the padding token, and a warning where that is a guess."""
    if written is not None:
        pad_id = encoder.token_to_id(written)
        if pad_id is None:
            known = list(encoder.get_vocab())
            raise DataError(
                f"`pad_token` is a token of the tokenizer. `{path.name}` has {len(known):,}, and `{written}` is none "
                f"of them.{did_you_mean(written, known)}"
            )
        return int(pad_id), ""
    settings = getattr(encoder, "padding", None) or {}
    for token in (settings.get("pad_token"), *_PADDING):
        if token and (pad_id := encoder.token_to_id(token)) is not None:
            return int(pad_id), ""
    first = encoder.id_to_token(0)
    if first is None:
        return 0, ""
    return 0, (
        f"rows are filled up with the id 0, which is the token `{first}` of `{path.name}`: no token of it is known to "
        "be for padding. Name one: `tokenizer: {pad_token: ...}`"
    )


def _instead(path: Path) -> str:
    if not path.is_dir():
        others = sorted(each.name for each in path.parent.glob("*") if each.suffix in (".json", ".txt"))
        return f"`{path}` does not exist.{did_you_mean(path.name, others)}"
    inside = [name for name in _FILES if (path / name).is_file()]
    return f"`{path}` is a folder. " + (f"Write `{path / inside[0]}`." if inside else "It holds neither.")


def _content(path: Path) -> str:
    """Returns what a file is that is no tokenizer, where that shows."""
    with path.open("rb") as file:
        head = file.read(4096)
    if path.suffix == ".txt":
        lines = head.decode("utf-8", "replace").splitlines()[:1]
        needed = "a vocabulary has a token in each line, `[UNK]`, `[CLS]` and `[SEP]` among them"
        return f"{needed}, and it begins with {quote(line[:60] for line in lines)}"
    if b"\0" in head or path.suffix in (".model", ".spm"):
        return "it is not JSON, but binary, such as a model of SentencePiece; convert that to a `tokenizer.json`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        line = head.decode("utf-8", "replace").splitlines()[:1]
        return f"it is not JSON; it begins with {quote(each[:60] for each in line)}"
    if not isinstance(content, dict) or "model" not in content:
        keys = quote(content, limit=4) if isinstance(content, dict) and content else f"a `{type(content).__name__}`"
        return f"it is JSON without the key `model`, and has {keys}"
    return ""


def _beside(path: Path) -> str:
    others = [name for name in _FILES if (path.parent / name).is_file() and name != path.name]
    return f"Beside it is `{others[0]}`." if others else "Name the file that belongs to the network."
