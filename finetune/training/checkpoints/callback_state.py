"""What a callback remembers, as JSON and arrays: the patience that is used up, the best value so far, rows of metrics.

Keras' callbacks have no such method, so it is read from their attributes: all that are plain data, except for what they
were made with. A callback of the user's is taken along in the same way. Attributes that hold only in one process, such
as the time of its clock, are named in `not_resumed` of the class. A callback whose state is elsewhere, as in variables,
has the methods `state_to_resume()` and `resume_state(state)`, where the state is a dict of plain data.
"""

import inspect
import numbers
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from finetune.errors import FinetuneError
from finetune.plain_shapes import as_written
from finetune.training.checkpoints.content import REMOVE, type_of

_SCALARS = (bool, int, float, str, type(None))


class _NotPlainError(Exception):
    """An attribute is no plain data."""


def callback_states(callbacks: Iterable[keras.callbacks.Callback]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the states of callbacks, and the arrays in them.

    Returns:
        By the key of each callback, its attributes by name. And the arrays that these refer to, by name.
    """
    arrays: dict[str, np.ndarray] = {}
    states: dict[str, Any] = {}
    for key, callback in _keyed(callbacks):
        states[key] = {}
        state: Any = getattr(callback, "state_to_resume", lambda callback=callback: _attributes(callback))()
        for name, value in state.items():
            of_attribute: dict[str, np.ndarray] = {}
            try:
                states[key][name] = _plain(value, f"callbacks/{key}/{name}", of_attribute)
            except _NotPlainError:
                continue
            arrays |= of_attribute
    return states, arrays


def restore_callbacks(
    callbacks: Iterable[keras.callbacks.Callback],
    states: dict[str, Any],
    arrays: dict[str, np.ndarray],
    *,
    source: str,
) -> None:
    """Gives callbacks the states that `callback_states` returned; one without a state stays as it is.

    Args:
        callbacks: In the order of those that the states are of.
        states: By the key of each callback.
        arrays: What the states refer to.
        source: The file, for the message.

    Raises:
        FinetuneError: A value is of another kind than that which a callback of Keras or of ours has there.
    """
    for key, callback in _keyed(callbacks):
        resume: Any = getattr(callback, "resume_state", None)
        if resume is not None and key in states:
            with as_written(source, f"callbacks.{key}", REMOVE):
                resume({name: _value(value, arrays) for name, value in states[key].items()})
            continue
        for name, value in states.get(key, {}).items():
            if name in set(_names_made_with(callback)) | {*getattr(callback, "not_resumed", ())}:
                continue  # of another version of the class
            read = _value(value, arrays)
            if _is_of_us_or_keras(callback) and not _is_alike(vars(callback).get(name), read):
                raise FinetuneError(
                    f"What a training has written is read as it was written. `callbacks.{key}.{name}` in `{source}` "
                    f"cannot be: it is `{str(read)[:60]}`, and `{vars(callback)[name]}` in a training that begins. "
                    f"{REMOVE}"
                )
            setattr(callback, name, read)


def _is_of_us_or_keras(callback: keras.callbacks.Callback) -> bool:
    return type(callback).__module__.partition(".")[0] in ("finetune", "keras")


def _is_alike(before: Any, now: Any) -> bool:
    """Whether a value may stand in the place of another: a number for a number, a mapping for a mapping."""
    kinds: tuple[Any, ...] = (numbers.Real, dict, list, tuple, str)
    return before is None or now is None or all(isinstance(before, k) == isinstance(now, k) for k in kinds)


def _keyed(callbacks: Iterable[keras.callbacks.Callback]) -> Iterable[tuple[str, keras.callbacks.Callback]]:
    """Yields callbacks with a key: the name of the class, and a number where there are several."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield f"{name}-{seen[name]}", callback


def _attributes(callback: keras.callbacks.Callback) -> dict[str, Any]:
    left_out = {"_model", "params", *_names_made_with(callback), *getattr(callback, "not_resumed", ())}
    return {name: value for name, value in vars(callback).items() if name not in left_out}


def _names_made_with(callback: keras.callbacks.Callback) -> Iterable[str]:
    return inspect.signature(type(callback).__init__).parameters


def _plain(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Returns a value as JSON has it; arrays in it are put under names that begin with `name`."""
    if isinstance(value, np.ndarray | np.generic):
        if type_of(value.dtype.name) is None:  # objects, and texts, whose type NumPy does not find by its name
            raise _NotPlainError
        arrays[name] = np.array(value)
        return {"array": name, "scalar": isinstance(value, np.generic)}
    if type(value) in _SCALARS:
        return value
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{name}/{place}", arrays) for place, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if type(value) is dict:
        pairs = [
            [_plain(key, f"{name}/{place}/key", arrays), _plain(item, f"{name}/{place}", arrays)]
            for place, (key, item) in enumerate(value.items())
        ]
        return {"dict": pairs}
    raise _NotPlainError


def _value(plain: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        array = arrays[plain["array"]]
        return array[()] if plain["scalar"] else array.copy()
    if "dict" in plain:
        return {_value(key, arrays): _value(item, arrays) for key, item in plain["dict"]}
    if "tuple" in plain:
        return tuple(_value(item, arrays) for item in plain["tuple"])
    return [_value(item, arrays) for item in plain["list"]]
