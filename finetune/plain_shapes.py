"""What plain data must look like that was written as JSON and is read back, and what is wrong with it.

A file that a program has written may have been changed since, by hand or on purpose. It is compared with a shape when
it is read, so that everything behind the reader may rely on it. A shape is one of

    `int`, `float`, `str`, `bool`, `dict`, `list`, `None`   a value of this type; `float` takes whole numbers, too
    `COUNT`, `FINITE`                                       a whole number from 0 on; a number that is finite
    `SIZE`, `POSITIVE`                                      a whole number from 1 on; a finite number above 0
    `frozenset({"a", "b"})`                                 one of these texts
    `{"name": shape, "other?": shape}`                      a mapping with these names; those with `?` may be missing
    `{"name": shape, "": None}`                             likewise, and it has no other names
    `{str: shape}`                                          a mapping from any names
    `[shape]`                                               a list of such values
    `[shape, shape]`                                        a list of exactly these values
    `(shape, shape)`                                        any of these
    `ANY`                                                   whatever JSON has

Other names are left alone: a later version may write more.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, printable, quote, reason

ANY, COUNT, FINITE = "anything", "a whole number from 0 on", "a finite number"
SIZE, POSITIVE = "a whole number from 1 on", "a finite number above 0"
_LARGEST = 2**62  # what is counted fits into 64 bits
_DEEPEST = 100  # levels of JSON
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    None: "null",
}


def fault(value: Any, shape: Any, place: str = "") -> str:
    """Returns what is wrong with a value; an empty text where nothing is.

    >>> fault({"rows": {"test": -1}}, {"rows": {str: COUNT}})
    '`rows.test` must be a whole number from 0 on, and is -1'

    Args:
        value: The value.
        shape: What it must look like.
        place: The names that lead to it, separated by dots.
    """
    if isinstance(shape, tuple):
        faults = [fault(value, each, place) for each in shape]
        of_same_kind = (said for each, said in zip(shape, faults, strict=True) if isinstance(value, _kind_of(each)))
        return "" if "" in faults else next(of_same_kind, _said(place, _name_of(shape), value))
    if isinstance(shape, dict) and isinstance(value, Mapping):
        return _fault_in_mapping(value, shape, place)
    if isinstance(shape, list) and isinstance(value, list | tuple) and len(shape) in (1, len(value)):
        shapes = shape * len(value) if len(shape) == 1 else shape
        inner = (fault(each, of, _within(place, n)) for n, (each, of) in enumerate(zip(value, shapes, strict=True)))
        return next(filter(None, inner), "")
    return "" if _fits(value, shape) else _said(place, _name_of(shape), value)


def read_document(path: Path, shape: Any) -> Any:
    """Reads a file of JSON that has a shape.

    Args:
        path: The file.
        shape: What its content must look like.

    Raises:
        FileNotFoundError: It does not exist.
        OSError: It cannot be read.
        ValueError: It is no JSON or has another shape; the text says where.
    """
    document = parse(path.read_bytes())
    if wrong := fault(document, shape):
        raise ValueError(wrong)
    return document


def parse(text: str | bytes) -> Any:
    """Returns what a text of JSON says.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or has a number that is too long.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        document = json.loads(text)
        check_depth(document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    return document


@contextmanager
def as_written(source: object, name: str, advice: str) -> Iterator[None]:
    """Puts into a sentence what goes wrong in the block, in which a value of a file is taken over.

    For values whose shape only those know who take them over, such as callbacks of the user's.

    Args:
        source: The file.
        name: The name of the value.
        advice: What to do, a sentence.

    Raises:
        FinetuneError: The value is not what is needed.
    """
    try:
        yield
    except FinetuneError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FinetuneError(
            f"What a training has written is read as it was written. `{printable(name)}` in `{source}` cannot be: "
            f"{reason(error)}. {advice}"
        ) from error


def check_depth(document: Any) -> None:
    """Checks that data are not nested so deeply, nor within themselves, that nobody could walk through them.

    Raises:
        ValueError: They are.
    """
    level = [document]
    for _ in range(_DEEPEST):
        values = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        # Each once: an alias of YAML may name the same list a million times.
        level = list({id(inner): inner for inner in values}.values())
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _fault_in_mapping(value: Mapping[Any, Any], shape: dict[Any, Any], place: str) -> str:
    if str in shape:
        inner = (fault(each, shape[str], _within(place, name)) for name, each in value.items())
        return next(filter(None, inner), "")
    known = {key.removesuffix("?"): (key, of) for key, of in shape.items() if key}
    if "" in shape and (unknown := [name for name in value if name not in known]):
        return f"`{printable(_within(place, unknown[0]))}` is none of {quote(known, limit=20)}"
    for name, (key, of) in known.items():
        if name in value:
            if wrong := fault(value[name], of, _within(place, name)):
                return wrong
        elif name == key:
            return f"`{_within(place, name)}` is missing"
    return ""


def _fits(value: Any, shape: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if shape is ANY:
        return True
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if shape in (float, FINITE, POSITIVE):
        # A whole number of JSON may be too large for a float.
        fits = (
            abs(value) < 2**1023 if isinstance(value, int) else is_number and (shape is float or math.isfinite(value))
        )
        return is_number and fits and (shape is not POSITIVE or value > 0)
    if shape in (int, COUNT, SIZE):
        least = -_LARGEST if shape is int else int(shape is SIZE)
        return is_number and isinstance(value, int) and least <= value <= _LARGEST
    return value is None if shape is None else isinstance(shape, type) and isinstance(value, shape)


def _kind_of(shape: Any) -> type | tuple[type, ...]:
    return type(shape) if isinstance(shape, dict | list) else ()


def _name_of(shape: Any) -> str:
    if isinstance(shape, tuple):
        names = list(dict.fromkeys(map(_name_of, shape)))
        return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    if isinstance(shape, dict | list):
        many = f" of {len(shape)} values" if isinstance(shape, list) and len(shape) > 1 else ""
        return _NAMES[type(shape)] + many
    if isinstance(shape, frozenset):
        return " or ".join(f"`{name}`" for name in sorted(shape))
    return shape if isinstance(shape, str) else _NAMES[shape]


def _within(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _said(place: str, needed: str, value: Any) -> str:
    if isinstance(value, dict | list):
        received = f"{_NAMES[type(value)]} of {len(value)}"
    else:
        received = json.dumps(value, ensure_ascii=False)
    received = received if len(received) <= 60 else f"{received[:56]} ..."
    subject = f"`{printable(place)}`" if place else "its content"
    return f"{subject} must be {needed}, and is {printable(received)}"
