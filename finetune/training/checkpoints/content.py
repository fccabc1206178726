"""What a checkpoint must hold, and what is wrong with one that does not.

The checksum in its name shows that a file is whole, and not that a training has written it. So everything that is read
of it later is looked at once, when the file is read: counts, positions, states, shapes and types. Needs no TensorFlow.
"""

import random
from collections.abc import Mapping
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from finetune.errors import printable
from finetune.optimizers.saved_shape import fault_in_state
from finetune.plain_shapes import ANY, COUNT, fault

REMOVE = "Remove this file: the training then goes on from the checkpoint before it."
HEADER = {"format": int, "types": {str: [str, [COUNT]]}, "document": dict}
_DOCUMENT: dict[str, Any] = {
    "position": {"epoch": COUNT, "step": COUNT, "ended": bool, "stopped": bool, "": None},
    "model": {
        "paths": {"metrics": [str], "model": [str], "optimizer": [str]},
        "optimizer": ANY,
        "names?": [str],
        "slots?": [(None, [str, str, str])],
        "rules?": {str: str},
        "random": {"python": ANY, "numpy": ANY, "tensorflow": ANY, "keras": (None, [COUNT])},
    },
    "callbacks": {str: {str: ANY}},
    "history": {"epoch": [COUNT], "history": {str: [float]}},
    "more": dict,
}
_MOST_DIMENSIONS = 32
_SCALARS = bool | int | float | str | None
_OF_WRONG_STATE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # not: no memory


def type_of(name: str) -> np.dtype[Any] | None:
    """Returns the type of a tensor by its name; `None` where none that a training has bears it."""
    try:
        kind = np.dtype(getattr(ml_dtypes, name, name))
    except (TypeError, ValueError, SyntaxError):
        return None
    return kind if kind.name == name and not kind.hasobject else None


def fault_in_tensor(name: str, dtype: str, shape: list[int], size: int) -> str:
    """Returns what is wrong with the description of a tensor.

    Args:
        name: Its name.
        dtype: The name of its type, as the description has it.
        shape: Its shape, likewise.
        size: How many bytes the file holds of it.
    """
    kind = type_of(dtype)
    if kind is None:
        return f"`{printable(dtype)}`, the type of `{printable(name)}`, is none of a tensor"
    if len(shape) > _MOST_DIMENSIONS:
        return f"`{printable(name)}` has {len(shape)} dimensions"
    if prod(shape) * kind.itemsize != size or (size == 0 and max(shape, default=0) > 2**31):
        return f"`{printable(name)}` has {size} bytes, which are no tensor of the shape {shape} and type {dtype}"
    return ""


def fault_in_document(document: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Returns what is wrong with the document of a checkpoint; an empty text where nothing is.

    Args:
        document: What is no array.
        arrays: The arrays by name.
    """
    if wrong := fault(document, _DOCUMENT):
        return wrong
    model = document["model"]
    if wrong := fault_in_state(model["optimizer"], "model.optimizer") or _fault_in_slots(model, arrays):
        return wrong
    if wrong := _fault_in_random(model["random"]):
        return wrong
    slots = model.get("slots") or []
    left_out = {f"optimizer/{n:05d}" for n, row in enumerate(slots) if row and row[0]} if _leaves_out(model) else set()
    for part, paths in model["paths"].items():
        for place in range(len(paths)):
            if (name := f"{part}/{place:05d}") not in arrays and name not in left_out:
                return f"the array `{name}` of `{printable(paths[place])}` is missing"
    for key, state in document["callbacks"].items():
        for name, value in state.items():
            if not _is_plain(value, arrays):
                return f"`callbacks.{printable(key)}.{printable(name)}` is no value of a callback"
    return ""


def _leaves_out(model: Mapping[str, Any]) -> bool:
    """Whether the slots of groups were not to be written: `train.checkpoint_optimizer: false`."""
    return model.get("slots_left_out") is True


def _fault_in_slots(model: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    paths, slots, rules = model["paths"], model.get("slots"), model.get("rules", {})
    for key, part in (("names", "model"), ("slots", "optimizer")):
        if key in model and len(model[key]) != len(paths[part]):
            return f"`model.{key}` has {len(model[key])} entries, and `model.paths.{part}` has {len(paths[part])}"
    groups = (model["optimizer"] or {}).get("groups", {})
    for place, slot in enumerate(slots or ()):
        if slot and slot[0] and (slot[0] not in groups or slot[0] not in rules):
            return f"`model.slots.{place}` is of `{printable(slot[0])}`, which is no group of the optimizer"
        if slot == ["", "", "steps"]:
            array = arrays.get(f"optimizer/{place:05d}")
            if array is None or array.shape or array.dtype.kind not in "iu" or int(array) < 0:
                return f"the array `optimizer/{place:05d}` must be a count of steps"
    return ""


def _fault_in_random(state: Mapping[str, Any]) -> str:
    numpy, python = state["numpy"], state["python"]
    try:
        kind, keys, *rest = numpy
        np.random.RandomState().set_state((kind, np.array(keys, np.uint32), *rest))  # pyright: ignore[reportCallIssue]
    except _OF_WRONG_STATE:  # NumPy checks each part of its state
        return "`model.random.numpy` is no state of NumPy's random generator"
    for name, value in (("python", python), ("tensorflow", state["tensorflow"])):
        try:
            if value is None and name == "python":
                raise ValueError(name)
            if value is not None:
                version, words, gauss = value
                random.Random().setstate((version, tuple(words), gauss))
                if gauss is not None:
                    float(gauss)
        except _OF_WRONG_STATE:  # Python checks its state, likewise
            return f"`model.random.{name}` is no state of Python's random generator"
    if len(state["keras"] or [0, 0]) != 2 or max(state["keras"] or [0]) >= 2**32:
        return "`model.random.keras` is no seed of Keras"
    return ""


def _is_plain(value: Any, arrays: Mapping[str, np.ndarray], level: int = 0) -> bool:
    """Whether `callback_states` can have written a value."""
    if isinstance(value, _SCALARS):
        return True
    if not isinstance(value, dict) or level > 50:
        return False
    if "array" in value:
        array = arrays.get(value["array"]) if isinstance(value["array"], str) else None
        is_scalar = value.get("scalar")
        return array is not None and isinstance(is_scalar, bool) and (not is_scalar or array.ndim == 0)
    if isinstance(pairs := value.get("dict"), list):
        return all(
            isinstance(pair, list)
            and len(pair) == 2
            and _is_key(pair[0])
            and all(_is_plain(each, arrays, level + 1) for each in pair)
            for pair in pairs
        )
    items = value.get("tuple", value.get("list"))
    return isinstance(items, list) and all(_is_plain(item, arrays, level + 1) for item in items)


def _is_key(value: Any) -> bool:
    """Whether a value may be the key of a dict: neither a list nor a dict, nor a tuple with one."""
    if isinstance(value, dict) and isinstance(items := value.get("tuple"), list):
        return all(map(_is_key, items))
    return isinstance(value, _SCALARS) or (isinstance(value, dict) and value.get("scalar") is True)
