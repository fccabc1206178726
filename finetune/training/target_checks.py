"""Targets that a loss does not take, said in the user's words before TensorFlow says it in its own.

TensorFlow names shapes of tensors, and only where they cannot be broadcast: targets of another form often train, on a
loss that means nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from finetune.data.examples import SPLITS, Examples
from finetune.data.loss_families import BINARY, NUMBERS, ONE_HOT, SPARSE, family_of, plain_name
from finetune.data.target_facts import names_of_classes
from finetune.errors import DataError, quote
from finetune.models.output_names import by_output_name

_OF_LABELS = ("binarycrossentropy", "binaryfocalcrossentropy")


class WidthError(DataError):
    """The network gives more or fewer values for a row than there are targets: its head is at fault, not its loss."""


def check_targets(model: keras.Model, examples: Examples, y: Any, outputs: Any) -> None:
    """Checks the form of the targets of every output, and that labels are those of its classes.

    Args:
        model: A compiled model.
        examples: What it will be trained and tested on.
        y: Targets of a few rows.
        outputs: Outputs of the model for them.

    Raises:
        DataError: The loss takes other targets.
    """
    for output, loss, name, target, shape in _outputs_with_targets(model, model.loss, y, outputs):
        _check_form(name, target, shape, _of(output))
        labels = dict(_every_target(model, examples, output))
        _check_labels(name, loss, labels, shape[-1], _of(output), names_of_classes(examples, output))


def check_forms(model: keras.Model, losses: Any, y: Any, outputs: Any) -> None:
    """Checks the form of the targets of every output, before a metric fails on them in TensorFlow's words.

    Args:
        model: A model, which need not be compiled.
        losses: Its losses, as for `compile`.
        y: Targets of a few rows.
        outputs: Outputs of the model for them.

    Raises:
        DataError: The loss takes other targets.
    """
    for output, _, name, target, shape in _outputs_with_targets(model, losses, y, outputs):
        _check_form(name, target, shape, _of(output))


def _of(output: str) -> str:
    return f" of output `{output}`" if output else ""


def _outputs_with_targets(
    model: keras.Model, losses: Any, y: Any, outputs: Any
) -> Iterator[tuple[str, Any, str, Any, tuple[int, ...]]]:
    """Yields name, loss and name of the loss, targets and shape of each output that has targets in an array."""
    of_outputs, targets = by_output_name(model, losses), by_output_name(model, y)
    for output, values in by_output_name(model, outputs).items():
        loss = of_outputs.get(output, of_outputs.get(""))
        name = str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))
        target, shape = targets.get(output), tuple(getattr(values, "shape", ()))
        if target is not None and hasattr(target, "shape") and shape:
            yield output, loss, name, target, shape


def _check_form(loss: str, target: Any, shape: tuple[int, ...], of_output: str) -> None:
    """Checks targets of text, one-hot targets of a sparse loss, and numbers of classes for a loss of one-hot ones."""
    family, classes, axes = family_of(loss), shape[-1], tuple(target.shape)
    if str(getattr(target.dtype, "name", target.dtype)) == "string":
        shown = [each.decode(errors="replace") for each in np.asarray(target).reshape(-1)[:3].tolist()]
        raise DataError(
            f"The loss `{loss}` takes numbers. The targets{of_output} are text, such as {quote(shown)}. Number the "
            "classes from 0."
        )
    is_one_hot = len(axes) == len(shape) and axes[-1] == classes and classes > 1
    if family == SPARSE and is_one_hot:
        raise DataError(
            f"The loss `{loss}` takes the number of the class of each row. The targets{of_output} have {classes} "
            "values a row, a target for each class. Take `categorical_crossentropy`, or number the classes."
        )
    if plain_name(loss) != "crossentropy" and family == ONE_HOT and classes > 1 and not is_one_hot:
        if len(axes) == len(shape) - 1 or (len(axes) == len(shape) and axes[-1] == 1):
            raise DataError(
                f"The loss `{loss}` takes {classes} values a row, a target for each class. The targets{of_output} are "
                "a single number a row. Take `sparse_categorical_crossentropy`."
            )
        if len(axes) == len(shape):
            raise WidthError(
                f"The loss `{loss}` takes a target for each class. The model gives {classes} classes{of_output}, and "
                f"the targets have {axes[-1]} values a row. Give the head as many classes."
            )
    values = axes[-1] if len(axes) == len(shape) else 1
    is_a_row = len(shape) > 1 and len(axes) in (len(shape) - 1, len(shape))
    if family in (NUMBERS, BINARY) and is_a_row and values != classes:
        # Keras lets a single value stand for several, on either side, and trains on that without a word.
        raise WidthError(
            f"The loss `{loss}` takes a target for each value of the output. The model gives {classes} a row"
            f"{of_output}, and the targets have {values}. Give the head as many values (`head: {{classes: auto}}`), or "
            "take other targets."
        )


def _every_target(model: Any, examples: Examples, output: str) -> Iterator[tuple[str, np.ndarray]]:
    for split in SPLITS:
        y = by_output_name(model, getattr(examples, f"y_{split}")).get(output)
        if isinstance(y, np.ndarray) and y.dtype.kind in "biuf":
            yield (f"y_{split}", y)


def _check_labels(
    loss: str, about: Any, targets: dict[str, np.ndarray], classes: int, of_output: str, names: Sequence[str]
) -> None:
    if plain_name(loss) == "sparsecategoricalcrossentropy":
        allowed = {*range(classes), getattr(about, "ignore_class", None)}
        rule = "Labels must be the numbers of the classes, from 0."
        bounds = f"The model gives {classes} classes{of_output}, so they are `0` to `{classes - 1}`"
        advice = "Number the labels from 0, or give the model's head more classes."
    elif plain_name(loss) in _OF_LABELS:
        allowed = None  # every number between, as smoothed labels are
        rule, bounds = f"The labels of `{loss}` must be from 0 to 1.", "Outside of that its value falls without end"
        advice = "Number the labels 0 and 1, or take the loss of a regression, such as `mse`."
    else:
        return
    for name, labels in targets.items():
        known = np.unique(labels).tolist()
        wrong = [label for label in known if (label not in allowed if allowed else not 0 <= label <= 1)]
        if wrong and allowed and all(label >= 0 and label == int(label) for label in wrong):
            data_have = f"the data have {len(names)}: {quote(names)}" if names else f"`{name}` has {quote(wrong)}, too"
            missing = quote(names[int(label)] for label in wrong if label < len(names)) if names else "These"
            raise WidthError(
                f"A network has an output for each class. The model gives {classes} classes{of_output}, numbered `0` "
                f"to `{classes - 1}`, and {data_have}. {missing} {'have' if len(wrong) > 1 or not names else 'has'} no "
                f"output. {'Set' if names else 'Number them from 0, set'} `head: {{classes: auto}}`, or take a network "
                "with more outputs."
            )
        if wrong:
            raise DataError(f"{rule} {bounds}; `{name}` also holds {quote(wrong)}. {advice}")
