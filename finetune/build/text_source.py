"""Columns of text as inputs of a network: token ids, and what is made of them, such as a mask."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from finetune import keras_private
from finetune.data.rows import Rows
from finetune.data.table_files import Table
from finetune.data.tokenizer_file import encoding, open_tokenizer
from finetune.data.tokens import RowsOfTexts, Tokens, token_rows, tokenize, width_of_batches
from finetune.errors import DataError, quote
from finetune.models.preset_text import preset_text
from finetune.recipe.loader import placed, resolve_path, resolve_place
from finetune.recipe.schema import Recipe
from finetune.recipe.tokenizer import TokenizerSpec
from finetune.training.features.graph import can_open, open_graph

# What KerasHub, Hugging Face and TensorFlow Hub call token ids, and the inputs that follow from them.
IDS = ("token_ids", "input_ids", "input_word_ids")
_MADE_OF_IDS = {
    **dict.fromkeys(("padding_mask", "attention_mask", "input_mask"), "mask"),
    **dict.fromkeys(("segment_ids", "token_type_ids", "input_type_ids"), "types"),
}


def made_of_ids(inputs: Sequence[str], written: Sequence[str]) -> dict[str, str]:
    """Returns the inputs of a network that are made of its token ids, by their names: `mask` or `types`.

    Args:
        inputs: Names of the inputs of the network.
        written: Names of those for which the recipe names columns.
    """
    has_ids = any(name in IDS for name in inputs)
    return {name: _MADE_OF_IDS[name] for name in inputs if has_ids and name in _MADE_OF_IDS and name not in written}


def is_tokenized(recipe: Recipe, table: Table, names: Sequence[str], network_input: Any, alone: bool) -> bool:
    """Returns whether columns are text that becomes token ids.

    Args:
        recipe: The recipe.
        table: The table.
        names: The columns of an input.
        network_input: The symbolic input of the network, or `None`.
        alone: Whether the network has no other input.
    """
    types = recipe.data.types
    if any(types.get(name, "text") != "text" for name in names):
        return False
    dtype, shape = str(getattr(network_input, "dtype", "int32")), getattr(network_input, "shape", None) or ()
    is_whole = dtype.startswith(("int", "uint"))
    if dtype == "string" or len(shape) > 2:
        return False
    has_tokenizer = bool(recipe.data.tokenizer) and (alone or is_whole)
    if not has_tokenizer and not (recipe.model.preset and is_whole):  # the network of a preset takes token ids
        return False
    is_text = all(types.get(name) == "text" or table.column(name).kind == "text" for name in names)
    return is_text or (has_tokenizer and len(names) == 1)


def network_tokens(
    recipe: Recipe, table: Table, names: Sequence[str], network: keras.Model | None, network_input: Any
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Returns the token ids of a text, or of a pair of texts, in each row of a table.

    Args:
        recipe: The recipe.
        table: The table.
        names: The column of the text, or both.
        network: The network that takes the ids, or `None`.
        network_input: Its symbolic input, or `None`.

    Returns:
        `ids`, `mask` and `types` of the tokens, and what was done, by the name of the columns.

    Raises:
        RecipeError: There is no tokenizer, or the ids do not fit the network.
        DataError: There are more than two columns, or no text in them.
    """
    spec = recipe.data.tokenizer or TokenizerSpec()
    if len(names) > 2:
        raise DataError(
            f"Token ids are made of a text, or of two as a pair. Received {len(names)} columns: {quote(names)}. Join "
            "some of them beforehand."
        )
    columns = [table.column(name) for name in names]
    empty = np.flatnonzero(np.logical_and.reduce([column.missing for column in columns]))
    if len(empty) == len(table):
        raise DataError(f"A column of text has text. {quote(names)} is empty in all {len(table):,} rows.")
    rows = RowsOfTexts([column.texts() for column in columns])
    cache = resolve_path(recipe, spec.cache) if spec.cache else None
    warnings = [_warning_of_empty(table, names, empty)] if len(empty) else []
    if recipe.model.preset and not spec.file:
        with placed(recipe, "data", "tokenizer"):
            text = preset_text(resolve_place(recipe, recipe.model.preset), spec.length, len(names))
            shown, length, pad_id, vocabulary = recipe.model.preset, text.length, text.pad_id, text.vocabulary
            tokens = tokenize(rows, text.encode, f"{text.digest} {length}", cache=cache)
    elif spec.file and spec.length:
        with placed(recipe, "data", "tokenizer", "pad_token" if spec.pad_token else "file"):
            file = open_tokenizer(resolve_path(recipe, spec.file), pad_token=spec.pad_token)
        shown, length, pad_id, vocabulary = str(file.path), spec.length, file.pad_id, file.vocabulary
        warnings += [file.warning] if file.warning else []
        with placed(recipe, "data", "tokenizer", "length"):
            encode = encoding(file, length, len(names))
        with placed(recipe, "data", "tokenizer", "cache" if cache else "file"):
            tokens = tokenize(rows, encode, f"{file.digest} {length}", cache=cache)
    else:
        raise needs_tokenizer(names)
    taken = getattr(network_input, "shape", (None, None))[-1]
    if taken not in (None, length):
        with placed(recipe, "data", "tokenizer", "length"):
            raise DataError(
                f"The network takes {taken:,} tokens for each row, and `length` is {length:,}. Set it to {taken}."
            )
    with placed(recipe, "data", "tokenizer", "file" if spec.file else "length"):
        _check_ids(tokens, spec.file or shown, network, network_input)
    width = width_of_batches(tokens, length, "buckets" if spec.padding == "auto" else spec.padding)
    options: Any = {"length": length, "pad_id": pad_id, "width": width}
    parts: Any = ("ids", "mask", "types")
    made = {part: token_rows(tokens, part, **options) for part in parts}
    about = {"kind": "text", "tokenizer": shown, "length": length, "cut": tokens.cut, "pad_id": pad_id}
    about |= {"longest": int(tokens.lengths.max()), "mean_length": round(float(tokens.lengths.mean()), 1)}
    about |= {"vocabulary": vocabulary, **({"reused": True} if tokens.reused else {})}
    about |= {"warnings": warnings} if warnings else {}
    return made, {" + ".join(names): about}


def needs_tokenizer(names: Sequence[str]) -> DataError:
    """Returns the error that columns of text need a tokenizer for a network that takes token ids."""
    return DataError(
        f"The network takes token ids of text. Received the columns {quote(names)} and no `tokenizer`. Write "
        "`tokenizer: {file: tokenizer.json, length: 64}`."
    )


def _warning_of_empty(table: Table, names: Sequence[str], empty: np.ndarray) -> str:
    return f"{quote(names)} is empty in {len(empty):,} of {len(table):,} rows: {table.places_of(empty)}"


def _check_ids(tokens: Tokens, tokenizer: str, network: Any, network_input: Any) -> None:
    known = _embedded(network, network_input)
    if known and tokens.highest >= known:
        raise DataError(
            f"Token ids must be rows of the network's embedding, which has {known:,}. `{tokenizer}` gives ids up to "
            f"{tokens.highest:,}. Use the tokenizer that belongs to the network."
        )


def _embedded(network: Any, network_input: Any) -> int | None:
    """Returns how many rows the embedding has that reads an input; or the largest one, where that does not show."""
    if network is None:
        return None
    embeddings = keras.layers.Embedding
    if network_input is not None and can_open(network):
        graph = open_graph(network)
        names = [tensor.name for tensor in network.inputs]
        numbers, sizes = {names.index(network_input.name)}, []
        for step in graph.steps:
            if numbers.isdisjoint(step.reads):
                continue
            layer = step.operation
            if layer is None or type(layer).__name__ in ("Cast", "Identity"):
                numbers.update(step.writes)
            elif isinstance(layer, keras.layers.Layer):
                inside = keras_private.sublayers(layer, include_self=True)
                sizes += [each.input_dim for each in inside if isinstance(each, embeddings)][:1]
        if sizes:
            return min(sizes)
    return max(
        (each.input_dim for each in keras_private.sublayers(network) if isinstance(each, embeddings)), default=None
    )


def text_warnings(inputs: Mapping[str, Any]) -> list[str]:
    """Returns what the user should know about columns of text, from what was noted about all inputs."""
    every = [about for columns in inputs.values() for about in columns.values()]
    return [warning for about in every if isinstance(about, Mapping) for warning in about.get("warnings", ())]
