"""To how many tokens the batches of a run are filled up: decided by what the network makes of padding.

Filling batches up only as far as their longest text needs changes nothing where a network ignores padding, and saves
the work on it. Whether it does shows in no layer for sure, so a few rows are run at both lengths.
"""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.examples import SPLITS, Examples, leaves
from finetune.data.rows import Rows, rows_of, take, take_batch
from finetune.errors import RecipeError, reason
from finetune.machine_failures import raise_machine_failure
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe
from finetune.training.try_examples import try_model

_LOOKED_AT = 64  # rows, of which the shortest are compared
_COMPARED = 4

# What padding does to the outputs: nothing; that is not known; it changes them; they need the full length.
_NONE, _UNKNOWN, _CHANGES, _REFUSED = "none", "unknown", "changes", "refused"


def with_padding(recipe: Recipe, model: keras.Model, examples: Examples) -> tuple[Examples, tuple[str, ...]]:
    """Decides to how many tokens the texts of a batch are filled up.

    Args:
        recipe: The recipe, with `data.tokenizer.padding`.
        model: The whole model with the weights that training begins with.
        examples: The examples; texts in them are filled up by batches.

    Returns:
        The examples, and what the user should know.

    Raises:
        RecipeError: The recipe asks for batches of several lengths, and the network takes a single one.
        DataError: The network has fewer positions than the rows have tokens.
    """
    if not any(isinstance(leaf, Rows) and leaf.batch_width for _, leaf in leaves("", examples.x_train)):
        return examples, ()
    written = recipe.data.tokenizer.padding if recipe.data.tokenizer else "auto"
    # On the processor: a graphics card gathers zeros beyond the end of a table of positions, without an error.
    with tf.device("CPU:0"):
        effect, why = _fixed_length(model, examples) or _effect(model, examples)
    if effect == _NONE or (written != "auto" and effect != _REFUSED):
        mode = "buckets" if written == "auto" else written
        said = f"batches are filled up to different lengths (`data.tokenizer.padding: {mode}`), and {why}. `padding: "
        advice = (f"{said}length` gives a row the same outputs in every batch",) if effect == _CHANGES else ()
        return replace(examples, source={**examples.source, "padding": mode}), advice
    if written != "auto":
        raise RecipeError(
            f"{place_of(recipe, 'data', 'tokenizer', 'padding')}: `data.tokenizer.padding: {written}` makes batches of "
            f"different lengths, and {why}. Write `padding: length`, or remove it."
        )

    def at_full_length(leaf: Any) -> Any:
        return replace(leaf, batch_width=None) if isinstance(leaf, Rows) else leaf

    inputs = {f"x_{name}": getattr(examples, f"x_{name}") for name in SPLITS}
    inputs = {name: tf.nest.map_structure(at_full_length, x) for name, x in inputs.items()}
    return replace(examples, **inputs, source={**examples.source, "padding": f"length: {why}"}), ()


def _fixed_length(model: Any, examples: Examples) -> tuple[str, str] | None:
    """Says that the network takes rows of a single length, where its inputs show it."""
    tensors = list(getattr(model, "inputs", None) or ()) if isinstance(model, keras.Function | keras.Sequential) else []
    names = {
        name.partition("/")[0] for name, leaf in leaves("", examples.x_train) if getattr(leaf, "batch_width", None)
    }
    for tensor in tensors:
        if (len(tensors) == 1 or tensor.name in names) and len(tensor.shape) == 2 and tensor.shape[1] is not None:
            return _REFUSED, f"`{model.name}` takes {tensor.shape[1]} tokens for each row"
    return None


def _effect(model: Any, examples: Examples) -> tuple[str, str]:
    """Runs a few of the shortest texts at both lengths; returns what the padding does, and a clause about it."""
    try_model(model, examples)
    rows = rows_of(examples.x_train)
    texts = [leaf for leaf in tf.nest.flatten(rows) if leaf.batch_width]
    numbers = tf.range(min(_LOOKED_AT, len(examples.train)), dtype=tf.int64)
    widths = [_width(take_batch(texts, number[tf.newaxis])) for number in numbers]
    chosen = tf.gather(numbers, np.argsort(widths, kind="stable")[:_COMPARED])
    if _width(take_batch(texts, chosen)) == _width(take(texts, chosen)):
        return _UNKNOWN, "the texts are nearly all of the full length"
    long, short = take(rows, chosen), take_batch(rows, chosen)
    expected = [np.asarray(part, np.float64) for part in keras.tree.flatten(model(long, training=False))]
    try:
        received = [np.asarray(part, np.float64) for part in keras.tree.flatten(model(short, training=False))]
    except Exception as error:  # of TensorFlow or Keras: a layer that needs the length, in any way
        raise_machine_failure(error, "Running a few texts")
        tokens = int(take(texts, chosen)[0].shape[1])
        return _REFUSED, f"`{model.name}` takes {tokens} tokens for each row ({reason(error)})"
    if [part.shape for part in expected] != [part.shape for part in received]:
        return _REFUSED, f"the outputs of `{model.name}` are as long as its inputs"
    is_exact = model.dtype_policy.compute_dtype == "float32"
    for whole, part in zip(expected, received, strict=True):
        spread, size = float(np.ptp(whole, axis=0).max(initial=0)), float(np.abs(whole).max(initial=0))
        noise = (1e-5 if is_exact else 1e-2) * size
        if spread <= noise:
            return _UNKNOWN, f"the outputs of `{model.name}` are still the same for all texts"
        if (difference := float(np.abs(whole - part).max())) > 1e-3 * spread + noise:
            return (
                _CHANGES,
                f"the outputs of `{model.name}` depend on the padding, by up to {difference:.2g} in a few rows",
            )
    return _NONE, ""


def _width(texts: list[Any]) -> int:
    return sum(int(part.shape[1]) for part in texts)
