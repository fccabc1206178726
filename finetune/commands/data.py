"""`finetune data`: what was understood of the data of a recipe, without training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console

from finetune.build.data import build_examples, precision
from finetune.build.model import build_for, build_network
from finetune.build.objectives import with_chosen_losses
from finetune.build.source_keys import loss_names, output_widths
from finetune.data.columns import VectorWidthError
from finetune.data.examples import Examples, class_numbers, leaves, summary
from finetune.data.input_facts import describe_arrays
from finetune.data.target_advice import advice_on_targets
from finetune.data.target_facts import describe
from finetune.errors import FinetuneError
from finetune.models.preset_images import converter_sentence
from finetune.recipe.loader import load_recipe, resolve_path
from finetune.results.contact_sheet import write_contact_sheet
from finetune.results.tables import arrays_table, classes_table, columns_table, targets_table

_SHOWN = 24  # images on the sheet
_COLUMNS = 8
_FILES = 3  # shown of several


def show_data(
    recipe: str | Path,
    *,
    sheet: Path | None = None,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: Console,
) -> dict[str, Any]:
    """Prints splits, columns and classes, and draws some images.

    Args:
        recipe: Path of the recipe.
        sheet: A PNG file to write the first training images of each class to.
        overrides: Changes to the recipe such as `"data.limit=100"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to print.

    Returns:
        What is in `data.json` of a run; and `arrays`, where the data are no table.

    Raises:
        FinetuneError: The data cannot be read, or do not fit the network.
    """
    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    with precision(loaded):
        network = build_network(loaded, waits=True)
        with _columns_shown(console):
            examples = build_examples(loaded, network)
        build_for(loaded, network, examples)
        chosen = with_chosen_losses(loaded, network, examples)
    examples = chosen.examples
    losses, widths = loss_names(chosen.recipe), output_widths(chosen.recipe, network)
    described = describe(examples, losses)
    console.print(f"data: {summary(examples)}", markup=False)
    of_file = {"kind": "npz", "file": resolve_path(loaded, loaded.data.npz)} if loaded.data.npz else {}
    for key, value in {**of_file, **described["source"]}.items():
        if key == "files":
            more = f", and {len(value) - _FILES:,} more" if len(value) > _FILES else ""
            value = f"{len(value):,}: {', '.join(value[:_FILES])}{more}"
        if key not in ("inputs", "target", "warnings") and not (key == "file" and "files" in described["source"]):
            console.print(f"  {key}: {value}", markup=False)
    for warning in described["source"].get("warnings", ()):
        console.print(f"warning: {warning}", markup=False, highlight=False)
    for sentence in filter(None, (converter_sentence(network), *chosen.sentences)):
        console.print(sentence, markup=False, highlight=False)
    if described["source"].get("kind") == "table":
        console.print(columns_table(described["source"]["inputs"]))
    else:
        described["arrays"] = describe_arrays(examples)
        console.print(arrays_table(described["arrays"]))
    for name, loss in losses.items():
        facts = described.get("outputs", {}).get(name, {}) if name else described
        if "rows_of_classes" in facts:
            console.print(classes_table(facts, name))
        if "numbers" in facts:
            console.print(targets_table(facts["numbers"]))
        for advice in advice_on_targets(facts, loss, widths.get(name), output=name):
            console.print(f"advice: {advice}", markup=False)
    if sheet:
        count = _draw(examples, sheet)
        text = f"written: {sheet}, {count} training images" if count else "no sheet is written: there are no images"
        console.print(text, markup=False)
    return described


@contextmanager
def _columns_shown(console: Console) -> Iterator[None]:
    """Shows what was read of the columns where it does not fit the network: an error alone would hide it."""
    try:
        yield
    except FinetuneError as error:
        if isinstance(error.__cause__, VectorWidthError):
            console.print(columns_table({"": error.__cause__.fitted}))
        raise


def _draw(examples: Examples, path: Path) -> int:
    """Draws the first training images of each class in turn, also as epochs see them; returns how many."""
    y, names = examples.y_train, examples.class_names
    classes = class_numbers(y, len(names))
    labels = classes if classes is not None else y
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:  # several targets: no class to take turns by
        labels = np.zeros(len(examples.train))
    # The first row of each class, then the second, and so on.
    turns = np.zeros(len(labels), int)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        turns[of_class] = np.arange(len(of_class))
    rows = np.lexsort((labels, turns))[:_SHOWN]
    x, _ = examples.train.select(rows).first(len(rows))
    pictures = [np.asarray(array) for _, array in leaves("", x) if len(array.shape) == 4 and array.shape[-1] in (1, 3)]
    if not pictures:
        return 0
    shown_targets = y if classes is None else classes
    is_shown = isinstance(shown_targets, np.ndarray)  # not by the names of outputs
    texts = [_target_text(shown_targets[row], names) if is_shown else "" for row in rows]
    shown = list(pictures[0])
    if examples.augmentation:
        # Below: what the first of them look like in three epochs.
        spaces = -len(shown) % _COLUMNS
        shown += [np.full_like(shown[0], shown[0].max())] * spaces
        texts += [""] * spaces
        for epoch in range(3):
            images, labels = _augmented(examples, rows[:_COLUMNS], epoch)
            shown += images
            texts += labels
    write_contact_sheet(shown, texts, path, columns=_COLUMNS)
    return len(rows)


def _target_text(target: np.ndarray, names: Sequence[str]) -> str:
    """Returns the class, the labels or the first numbers of a row; nothing of a mask."""
    if np.ndim(target) > 1:
        return ""
    if names and np.ndim(target) == 0:
        return names[int(target)]
    if names and len(target) == len(names):
        return "|".join(name for name, value in zip(names, target, strict=True) if value)
    return ", ".join(map(str, np.atleast_1d(target)[:4]))


def _augmented(examples: Examples, rows: np.ndarray, epoch: int) -> tuple[list[np.ndarray], list[str]]:
    """Returns rows as they look in an epoch, filled up to a line of the sheet, and texts for them."""
    split, augmentation = examples.train.select(rows), examples.augmentation
    assert augmentation
    data = split.first(len(rows))

    @tf.function(autograph=False)
    def changed() -> Any:
        return augmentation.rows(data, tf.constant(epoch, tf.int64), tf.constant(rows, tf.int64), 0)

    images = list(tf.nest.flatten(changed()[0])[augmentation.leaf].numpy())
    spaces = _COLUMNS - len(images)
    texts = [f"epoch {epoch + 1}"] * len(images) + [""] * spaces
    return images + [np.full_like(images[0], images[0].max())] * spaces, texts
