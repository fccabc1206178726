"""Whether the values of inputs and targets are those that a network takes, as far as its graph of layers shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from finetune.data.examples import FEW_ROWS
from finetune.data.loss_families import SPARSE, family_of
from finetune.errors import quote
from finetune.keras_private import sublayers
from finetune.models.output_names import by_output_name
from finetune.training.features.graph import can_open, open_graph

Range = tuple[float, float]
_SCALED = 2.0  # what is within -2 to 2 has been scaled, or standardized
_UNSCALED = 20.0  # beyond it nothing has
_OF_PIXELS = 1 / 32  # a factor below this is for pixels from 0 to 255; with ImageNet's deviations it is 1 / 57
# Layers that only move or drop values, or change them a little.
_KEEPS_VALUES = (
    "Dropout",
    "Reshape",
    "Flatten",
    "Permute",
    "ZeroPadding",
    "Cropping",
    "Resizing",
    "Gaussian",
    "Random",
)
_EMBEDDINGS = (keras.layers.Embedding,)


def input_problems(model: keras.Model, ranges: Mapping[str, Range]) -> list[str]:
    """Returns a sentence for each input whose values are certainly not what the network takes.

    Args:
        model: The network.
        ranges: Least and greatest value of each input by its name; that of an only input is empty.
    """
    problems = []
    for name, layers in first_layers(model).items():
        if name not in ranges:
            continue
        low, high = ranges[name]
        of_input = f"inputs `{name}`" if name else "inputs"
        for layer in layers:
            if isinstance(layer, _EMBEDDINGS) and (high >= layer.input_dim or low < 0):
                problems.append(
                    f"the {of_input} are {low:,.0f} to {high:,.0f}, and `{layer.name}` takes ids from 0 to "
                    f"{layer.input_dim - 1:,}. Use the ids of the tokenizer, or of the vocabulary, that belongs to the "
                    "network"
                )
            elif _takes_pixels(layer) and max(-low, high) <= _SCALED:
                problems.append(
                    f"the network takes pixels from 0 to 255, since `{layer.name}` scales them. The {of_input} are "
                    f"{low:.3g} to {high:.3g}. Do not scale them"
                )
    return problems


def input_notes(model: keras.Model, ranges: Mapping[str, Range]) -> list[str]:
    """Returns a sentence for each input of large values that nothing scales; a network may have been trained on them.

    Args:
        model: The network.
        ranges: As for `input_problems`.
    """
    notes = []
    for name, layers in first_layers(model).items():
        low, high = ranges.get(name, (0.0, 0.0))
        unscaled = [layer for layer in layers if isinstance(layer, keras.layers.Layer) and _multiplies(layer)]
        if unscaled and max(-low, high) > _UNSCALED:
            notes.append(
                f"nothing scales the inputs{f' `{name}`' if name else ''}, {low:.3g} to {high:.3g}, before "
                f"`{unscaled[0].name}`. Where the network was not trained on such values, scale them: "
                "`data.value_range: [0, 1]` for images, or a `Rescaling` or `Normalization` layer"
            )
    return notes


def input_facts(model: keras.Model, ranges: Mapping[str, Range]) -> list[str]:
    """Returns a sentence for each input: the range of its values, and what the network does with them first.

    Args:
        model: The network.
        ranges: As for `input_problems`.
    """
    facts = []
    for name, layers in first_layers(model).items():
        if name not in ranges or not layers:
            continue
        (low, high), layer = ranges[name], layers[0]
        if isinstance(layer, _EMBEDDINGS):
            takes = f"`{layer.name}` takes ids from 0 to {layer.input_dim - 1:,}"
        elif _takes_pixels(layer):
            takes = f"the network takes pixels from 0 to 255, which `{layer.name}` scales"
        elif isinstance(layer, keras.layers.Layer) and _multiplies(layer):
            takes = f"`{layer.name}` takes them as they are"
        else:
            takes = f"they go through `{layer.name}` first"
        of_input = f" `{name}`" if name else ""
        facts.append(f"inputs{of_input}: {low:.3g} to {high:.3g} in the first rows; {takes}")
    return facts


def target_problems(model: Any, ranges: Mapping[str, Mapping[str, Range]]) -> list[str]:
    """Returns a sentence for labels, read row by row, that are not among the classes of the network.

    Args:
        model: The compiled network.
        ranges: Least and greatest label of each split, by the name of the split and that of the output.
    """
    problems, losses = [], by_output_name(model, model.loss)
    is_sequence = isinstance(model, keras.Sequential)
    outputs = by_output_name(model, model.outputs[0] if is_sequence else getattr(model, "output", None))
    for split, of_split in ranges.items():
        for name, (low, high) in of_split.items():
            loss, shape = losses.get(name, losses.get("")), getattr(outputs.get(name), "shape", None)
            ignored = getattr(loss, "ignore_class", None)
            known = str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))
            if family_of(known) != SPARSE or not shape or not shape[-1]:
                continue
            if (high >= shape[-1] and high != ignored) or (low < 0 and low != ignored):
                problems.append(
                    f"labels of `{split}`{f' for `{name}`' if name else ''} are {low:g} to {high:g}, and the network "
                    f"gives {shape[-1]} classes, `0` to `{shape[-1] - 1}`. Number the labels from 0, or give the head "
                    "more classes"
                )
    return problems


def rare_class_problems(described: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each output some of whose classes have few training rows.

    Args:
        described: What is known of the data, as `data.json` has it.
    """
    problems = []
    for output, facts in (described.get("outputs") or {"": described}).items():
        counts = facts.get("rows_of_classes")
        if not counts:
            continue
        # Numbers without names may leave some out, which then are no classes.
        occurs = [any(of_class) for of_class in zip(*counts.values(), strict=True)]
        is_named = "class_names" in described or output
        rare, untested, of_output = [], [], f" of `{output}`" if output else ""
        tests = counts.get("test", counts["train"])
        for name, train, test, there in zip(facts["class_names"], counts["train"], tests, occurs, strict=False):
            if train < FEW_ROWS and (there or is_named):
                rare.append(f"`{name}` ({train})")
            if train and not test:
                untested.append(name)
        if rare:
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            problems.append(
                f"{_classes(rare, of_output)} fewer than {FEW_ROWS} training rows: {', '.join(rare[:5])}{more}"
            )
        if untested:
            problems.append(f"{_classes(untested, of_output)} rows to train on and none to test on: {quote(untested)}")
    return problems


def _classes(classes: Sequence[str], of_output: str) -> str:
    return f"{len(classes)} classes{of_output} have" if len(classes) > 1 else f"a class{of_output} has"


def first_layers(model: keras.Model) -> dict[str, list[Any]]:
    """Returns the layers and operations that first change the values of each input, by the name of the input.

    Layers that move values (`Reshape`) or change them at random (`RandomFlip`) are looked through. It is empty for a
    model without a graph of layers.
    """
    if not can_open(model):
        return {}
    graph, first = open_graph(model), {}
    for number, tensor in enumerate(model.inputs):
        carried, found = {number}, []
        for step in graph.steps:
            if not carried & set(step.reads):
                continue
            if step.operation is None or type(step.operation).__name__.startswith(_KEEPS_VALUES):
                carried |= set(step.writes)
            else:
                found.append(step.operation)
        first[tensor.name if len(model.inputs) > 1 else ""] = found
    return first


def _takes_pixels(layer: Any) -> bool:
    """Whether a layer brings pixels from 0 to 255 to the scale that networks work with."""
    if isinstance(layer, keras.layers.Rescaling):
        return bool(np.max(np.abs(np.asarray(layer.scale, np.float64))) <= _OF_PIXELS)
    if isinstance(layer, keras.layers.Normalization) and getattr(layer, "mean", None) is not None:
        return bool(np.min(np.asarray(layer.mean, np.float64)) > _UNSCALED)
    return False


def _multiplies(layer: keras.layers.Layer) -> bool:
    """Whether a layer multiplies its inputs with weights, which makes large values larger."""
    normalizes = (keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.Normalization)
    inside = sublayers(layer, include_self=True)
    kernels = [weight for weight in layer.weights if len(weight.shape) > 1]  # also of a layer that is frozen
    return bool(kernels) and not any(isinstance(each, (*normalizes, *_EMBEDDINGS)) for each in inside)
