"""Advice on a loss that does not fit what the network ends in: probabilities, or logits.

Logits are the numbers before softmax or sigmoid. A cross-entropy by its bare name takes probabilities: it cuts logits
off at 0 and 1, stays finite, and trains to nothing. With `from_logits: true` it is the other way around.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from finetune.models.output_activation import PROBABILITIES, output_activations
from finetune.models.output_names import output_names

# Losses of probabilities that have no `from_logits`.
_OF_PROBABILITIES = ("kldivergence", "kullbackleiblerdivergence", "kld", "dice", "tversky")
_SLACK = 1e-3  # half-precision softmax ends slightly above 1


def takes_logits(loss: Any) -> bool | None:
    """Returns whether a loss takes logits; `None` for a loss that takes neither logits nor probabilities.

    Args:
        loss: A name, a function or an object, as it was passed to `compile`.
    """
    if str(loss).lower() in ("crossentropy", "ce"):  # Keras chooses the class by the shape of the targets
        return False
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(loss, keras.losses.Loss):
        try:
            config = loss.get_config()
        except (NotImplementedError, TypeError):  # a loss of the user's that cannot be saved
            return None
        if "from_logits" in config:
            return bool(config["from_logits"])
        return False if _plain(type(loss).__name__) in _OF_PROBABILITIES else None
    if not callable(loss):  # none, or several by output
        return None
    parameters = inspect.signature(loss).parameters
    if "from_logits" in parameters:
        return bool(parameters["from_logits"].default)
    return False if _plain(getattr(loss, "__name__", "")) in _OF_PROBABILITIES else None


def advice_on_loss(model: Any, x: Any) -> Iterator[str]:
    """Yields a sentence for each output that the loss is the wrong one for.

    Args:
        model: A compiled model with its pretrained weights.
        x: Inputs of some rows, on which outputs are looked at whose activation the graph does not show.
    """
    names = output_names(model)
    for index, activation in enumerate(output_activations(model)):
        loss = model.loss.get(names[index]) if isinstance(model.loss, Mapping) and index < len(names) else model.loss
        logits = takes_logits(loss)
        if logits is None:
            continue
        name = str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))
        where = f"output {index + 1} of the network" if len(output_activations(model)) > 1 else "the network"
        if logits and activation in PROBABILITIES:
            yield (
                f"`loss: {{name: {name}, from_logits: true}}` takes logits, and {where} ends in `{activation}`. Remove "
                f"`from_logits`, or end the network without an activation."
            )
        elif not logits and activation not in PROBABILITIES:
            seen = f"ends in `{activation}`" if activation else _range_outside(model, x, index)
            if seen:
                yield (
                    f"`loss: {name}` takes probabilities, and {where} {seen}: these are logits. Trained like this it "
                    f"learns little or nothing. {_remedy(name)}"
                )


def _range_outside(model: Any, x: Any, index: int) -> str:
    """Returns the range of an output, as words, if there are values that cannot be probabilities."""
    outputs = keras.tree.flatten(model(x, training=False))
    if index >= len(outputs):
        return ""
    values = np.asarray(outputs[index], "float64")
    low, high = values.min(), values.max()
    return f"gives values from {low:.3g} to {high:.3g}" if low < -_SLACK or high > 1 + _SLACK else ""


def _remedy(name: str) -> str:
    plain = _plain(name)
    activation = "sigmoid" if plain.startswith("binary") else "softmax"
    if plain in _OF_PROBABILITIES:
        return f"End the network in `{activation}`."
    if plain in ("crossentropy", "ce"):
        return "Write the full name of the loss with `from_logits: true`, or end the network in `softmax` or `sigmoid`."
    return f"Write `loss: {{name: {name}, from_logits: true}}`, or end the network in `{activation}`."


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
