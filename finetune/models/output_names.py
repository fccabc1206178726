"""The outputs of a network by name, in whichever structure the network returns them."""

from collections.abc import Mapping
from typing import Any

import keras


def output_names(model: Any) -> tuple[str, ...]:
    """Returns the names of a network's outputs in their order; an only output has the name `""`.

    They are those by which Keras takes losses and targets: the keys of a dict of outputs, else the names of the layers
    that give them. Nothing is known of a subclassed model before it runs, so its output counts as the only one.
    """
    outputs = getattr(model, "output", None) if isinstance(model, keras.Function) else None
    if isinstance(outputs, Mapping) and len(outputs) > 1:
        return tuple(sorted(outputs))  # the order in which Keras flattens them
    names = tuple(getattr(model, "output_names", None) or ()) if isinstance(outputs, list | tuple) else ()
    return names if len(names) > 1 else ("",)


def of_output(values: Mapping[str, Any], name: str) -> Any:
    """Returns what belongs to an output: the only value, whatever it is called, or that of the name.

    Args:
        values: A value for each output of a network, by its name.
        name: Name of the output; empty for the only one.
    """
    return next(iter(values.values())) if len(values) == 1 else values[name]


def by_output_name(model: Any, values: Any) -> dict[str, Any]:
    """Returns something that there is for each output, such as targets or outputs, by the name of the output.

    Args:
        model: The network.
        values: A dict by name, a list or tuple in the order of the outputs; anything else belongs to the only output.
    """
    if isinstance(values, Mapping):
        return dict(values)
    names = output_names(model)
    is_listed = isinstance(values, list | tuple) and len(names) > 1 and len(values) == len(names)
    return dict(zip(names, values, strict=True)) if is_listed else {"": values}
