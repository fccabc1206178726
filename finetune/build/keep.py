"""From the `data.keep` of a recipe to rows that are decoded only once."""

import shutil
import tempfile
from dataclasses import replace
from typing import Any

import tensorflow as tf

from finetune.available_memory import available_memory
from finetune.data.examples import SPLITS, Examples
from finetune.data.kept_rows import form_of, kept_in_memory, kept_on_disk
from finetune.data.rows import Rows
from finetune.errors import RecipeError
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe
from finetune.results.formatting import size_text
from finetune.training.features.store import DISK_MARGIN_BYTES


def with_kept_rows(recipe: Recipe, examples: Examples) -> Examples:
    """Lets each row that is decoded when it is taken be kept afterwards, as `data.keep` says.

    Raises:
        RecipeError: There is nothing to keep, or no room for it.
    """
    mode = recipe.data.keep
    if mode == "off":
        return examples
    inputs = {f"x_{split}": getattr(examples, f"x_{split}") for split in SPLITS}
    rows = [leaf for leaf in tf.nest.flatten(inputs) if isinstance(leaf, Rows)]
    forms = {id(leaf): form for leaf in rows if (form := form_of(leaf))}
    place = f"{place_of(recipe, 'data', 'keep')}: `data.keep: {mode}`"
    if not forms:
        raise RecipeError(
            f"{place} keeps rows that are decoded one by one, such as images in files. The rows of these data are in "
            "memory already, or differ in shape. Remove it."
        )
    needed = sum(leaf.length * forms[id(leaf)].nbytes for leaf in rows if id(leaf) in forms)
    folder = tempfile.gettempdir()
    room = available_memory() if mode == "memory" else shutil.disk_usage(folder).free
    if mode == "disk":
        room = max(0, room - DISK_MARGIN_BYTES)  # for what else is written there
    if needed > room:
        where, other = ("memory", "`disk`, or a smaller `data.size`") if mode == "memory" else (f"`{folder}`", "`off`")
        raise RecipeError(
            f"{place} needs {size_text(needed)} for the decoded rows, and {size_text(room)} are free in {where}. "
            f"Choose {other}."
        )
    keep = kept_in_memory if mode == "memory" else kept_on_disk

    def kept(leaf: Any) -> Any:
        return keep(leaf, forms[id(leaf)]) if id(leaf) in forms else leaf

    about = {**examples.source, "keep": {"place": mode, "bytes": needed}}
    return replace(
        examples, **{name: tf.nest.map_structure(kept, value) for name, value in inputs.items()}, source=about
    )
