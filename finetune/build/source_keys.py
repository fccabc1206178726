"""Keys of `data` that mean the same whatever the source: `limit`, `class_names`, `split`; and what a network takes."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from finetune.data.examples import SPLITS
from finetune.data.indexed import ItemNames
from finetune.data.loss_families import BINARY, NUMBERS, ONE_HOT, SPARSE, family_of
from finetune.data.splits import Indices, split_by_column, split_rows
from finetune.data.targets import AUTO, Target, class_target, kind_of_array
from finetune.errors import DataError, did_you_mean, quote
from finetune.models.output_names import by_output_name, output_names
from finetune.recipe.data import TEST_SHARE, SplitSpec, needless_in_split
from finetune.recipe.loader import resolve_path
from finetune.recipe.losses import by_output
from finetune.recipe.schema import Recipe

Part = TypeVar("Part")


def network_inputs(network: Any) -> Mapping[str, Any]:
    """Returns the symbolic inputs of a network by name; the name of an only input is empty."""
    is_known = isinstance(network, keras.Function | keras.Sequential)
    tensors: list[Any] = list(getattr(network, "inputs", None) or ()) if is_known else []
    return {tensor.name: tensor for tensor in tensors} if len(tensors) > 1 else {"": tensors[0] if tensors else None}


def output_widths(recipe: Recipe, network: Any) -> dict[str, int | None]:
    """Returns how many values the network gives for each output by its name; `None` where that is not known yet.

    Args:
        recipe: The recipe, whose `head` counts where it has one.
        network: The network without that head, or `None`.
    """
    if recipe.model.head:
        classes = recipe.model.head.classes
        return {"": classes if isinstance(classes, int) else None}
    outputs = getattr(network, "output", None) if isinstance(network, keras.Function) else None
    if isinstance(network, keras.Sequential) and getattr(network, "outputs", None):
        outputs = network.outputs[0]
    named = by_output_name(network, outputs)
    shapes = {name: getattr(named.get(name), "shape", ()) for name in output_names(network)}
    return {name: shape[-1] if len(shape) > 1 else None for name, shape in shapes.items()}


def loss_names(recipe: Recipe) -> dict[str, str]:
    """Returns the name of the loss of each output by its name; the name of an only output is empty."""
    return {name: loss.name for name, loss in by_output(recipe.train.loss).items()}


def class_targets(recipe: Recipe, labels: Sequence[str], network: Any, class_names: Sequence[str] = ()) -> Target:
    """Turns the class of each row into what the loss of the recipe takes.

    Args:
        recipe: The recipe.
        labels: Name of the class of each row.
        network: The network, which decides where the loss is `auto`.
        class_names: Names of the classes in their order, where the recipe gives none.

    Raises:
        DataError: A row has a class that `class_names` does not name, or the loss takes numbers.
    """
    losses, widths = loss_names(recipe), output_widths(recipe, network)
    if len(losses) > 1 or len(widths) > 1:
        raise DataError(
            "These data have a class for each row, and so a network for them has a single output. The recipe has "
            f"{max(len(losses), len(widths))}. Read a table, whose `target` names a column for each output."
        )
    [loss], [width] = losses.values(), widths.values()
    return class_target(labels, loss, class_names_of(recipe) or class_names, outputs=width)


def item_names(recipe: Recipe, network: Any) -> ItemNames:
    """Returns which parts of an item that is a dict are inputs and targets, as the recipe says.

    Raises:
        DataError: `inputs` does not name the inputs of the network.
    """
    source, inputs = recipe.data, network_inputs(network)
    column = (source.split.column if source.split else None) or ""
    written = dict(source.inputs)
    if list(written) == [""] and len(written[""]) > 1:  # a list of parts, which are the inputs of the network
        written = {name: (name,) for name in written[""]}
    several = [name for name, parts in written.items() if len(parts) > 1]
    if list(inputs) == [""] and len(written) == 1:
        written = {"": next(iter(written.values()))}
    is_known = isinstance(network, keras.Function | keras.Sequential)
    if several or (written and is_known and set(written) != set(inputs)):
        wrong = sorted(set(written) - set(inputs))
        raise DataError(
            f"`inputs` names a part of the rows for each input of the network: "
            f"{quote(name or 'its only input' for name in inputs)}. Received: {quote(several or written)}."
            f"{did_you_mean(wrong[0], list(inputs)) if wrong else ''}"
        )
    if list(source.target) not in ([], [""]):
        raise DataError(
            f"`target` by the names of outputs, {quote(source.target)}, is for the columns of a table. Give rows whose "
            "target is a dict by the names of the outputs."
        )
    return ItemNames({name: parts[0] for name, parts in written.items()}, source.target.get("", ()), column)


def limited_rows(recipe: Recipe, rows: int) -> np.ndarray:
    """Returns the indices of the rows that `limit` leaves, taken evenly so that classes keep their shares."""
    limit = min(recipe.data.limit or rows, rows)
    return np.linspace(0, rows - 1, limit).round().astype(int)


def class_names_of(recipe: Recipe) -> tuple[str, ...]:
    """Returns the names of all classes in the order that the recipe or its file of names gives; empty without either.

    Raises:
        DataError: The file does not exist.
    """
    if not recipe.data.class_names_file:
        return recipe.data.class_names
    path = resolve_path(recipe, recipe.data.class_names_file)
    if not path.is_file():
        raise DataError(f"The file of class names `{path}` does not exist.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def has_classes(recipe: Recipe, y: Any) -> bool:
    """Whether targets are classes or labels, not numbers: by the recipe's loss, or by their values where it is `auto`.

    Args:
        recipe: The recipe.
        y: The targets, an array of numbers.
    """
    loss = loss_names(recipe).get("", AUTO)
    return kind_of_array(y, None)[0] != NUMBERS if loss == AUTO else family_of(loss) in (SPARSE, ONE_HOT, BINARY)


def split_as_asked(
    recipe: Recipe, rows: int, labels: Any, keys: Any, *, test: Sequence[int] | np.ndarray | None = None
) -> Indices:
    """Splits rows as `data.split` says; without it, a fifth of them test.

    Args:
        recipe: The recipe.
        rows: Number of rows.
        labels: The class of each row; `None` where there are no classes.
        keys: The key of each row, for a split by `group` or `hash`; or `None`.
        test: Which rows test, where the data say so. Of the others a share validates.

    Raises:
        DataError: A split would be empty, or the rows have no classes or keys to split them by.
    """
    split = recipe.data.split or SplitSpec()
    by = split.by or ("random" if labels is None else "stratified")
    options: Any = {"validation": split.validation, "by": by, "seed": recipe.seed}
    if test is None:
        share = TEST_SHARE if split.test is None else split.test
        if share + split.validation >= 1:
            raise DataError(
                f"`split: {{validation: {split.validation}}}` leaves no rows to train on, since a fifth of the rows "
                "tests. Write `test`, too: together they must be less than 1."
            )
        return split_rows(rows, **options, test=share, labels=labels, keys=keys)
    others = np.setdiff1d(np.arange(rows), test)
    labels, keys = (None if each is None else np.asarray(each)[others] for each in (labels, keys))
    chosen = split_rows(len(others), **options, test=0.0, labels=labels, keys=keys)
    return {"train": others[chosen["train"]], "test": np.asarray(test), "validation": others[chosen["validation"]]}


def split_said_by_column(recipe: Recipe, values: Sequence[str], labels: Any) -> Indices:
    """Splits rows as a column says, of whose training rows a share validates where the recipe asks for it.

    Args:
        recipe: The recipe, with `data.split.column`.
        values: The values of the column.
        labels: The class of each row; `None` where there are no classes.

    Raises:
        DataError: The column holds other words, or says which rows validate and the recipe does, too.
    """
    split = recipe.data.split or SplitSpec()
    indices = split_by_column(values, split.column or "")
    if not split.validation:
        return indices
    if "validation" in indices:
        raise DataError(
            f"the column `{split.column}` says which rows validate, so `data.split.validation` has nothing to do. "
            "Remove it."
        )
    return split_as_asked(recipe, len(values), labels, None, test=indices["test"])


def named_by_splits(recipe: Recipe, parts: Mapping[str, Part]) -> dict[str, Part]:
    """Checks that rows come either with the names of all splits, or together, to be split as the recipe says.

    Args:
        recipe: The recipe.
        parts: Rows by the name of their split; or all rows, by an empty name.

    Returns:
        The same in the order of `SPLITS`. Training rows alone are all rows: their name becomes empty.

    Raises:
        DataError: A name is not known, a split is missing, or the recipe splits what is split already.
    """
    if list(parts) == ["train"]:  # the source has no other split, so the recipe makes them
        return {"": parts["train"]}
    if "" in parts:
        return dict(parts)
    unknown = [name for name in parts if name not in SPLITS]
    if unknown or not {"train", "test"} <= set(parts):
        raise DataError(
            f"Rows of several splits are named {quote(SPLITS)}, of which `train` and `test` are needed. Received: "
            f"{quote(parts)}.{did_you_mean(unknown[0], SPLITS) if unknown else ''} Rename them, or give all rows "
            "together and write `split` in the recipe."
        )
    split = recipe.data.split
    if split and (needless := needless_in_split(split, validates="validation" in parts)):
        raise DataError(f"`{'.'.join(('data', 'split', *needless[0]))}` {needless[1]}.")
    return {name: parts[name] for name in SPLITS if name in parts}
