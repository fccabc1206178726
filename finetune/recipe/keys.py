"""Every key of a recipe with its values, its default and its meaning, read from the schema itself.

`finetune keys` prints it, and the tables of the documentation are made of it, so that neither can differ from what
`finetune check` accepts.
"""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from finetune.errors import RecipeError, did_you_mean
from finetune.recipe.fields import IN_A_LIST, Part, RecipePath
from finetune.recipe.learning_rates import SCHEDULES
from finetune.recipe.optimizers import OPTIMIZERS, Named, OptimizerSpec
from finetune.recipe.schema import Recipe

_SCHEDULE = "learning_rate"  # where the keys of schedules are listed, though a phase and a strategy take them, too
_WORDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", RecipePath: "path"}
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: The key.
        values: What it takes, in words.
        default: Its value where it is left out, as YAML; `required` where it may not be; empty where there is none.
        meaning: What it does.
    """

    name: str
    values: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Block:
    """A mapping of a recipe.

    Attributes:
        path: The keys that lead to it, separated by dots, with the name of a schedule or strategy in parentheses.
        about: What it is.
        keys: Its keys, in their order in the schema.
    """

    path: str
    about: str
    keys: tuple[Key, ...]


def blocks() -> tuple[Block, ...]:
    """Returns every mapping of a recipe, outer before inner ones."""
    schedules = [block for part in SCHEDULES.values() for block in _blocks(part, f"{_SCHEDULE} ({_kind(part)})")]
    return (*_blocks(Recipe, ""), *schedules)


def blocks_at(path: str) -> tuple[Block, ...]:
    """Returns the mappings that a name stands for, and those inside them.

    Args:
        path: Keys separated by dots, such as `data.split`; the name of a schedule or strategy; or any key, which stands
            for the mappings that have it. Empty for the recipe's first keys.

    Raises:
        RecipeError: Nothing in a recipe has this name.
    """
    every = blocks()
    if not path:
        return every[:1]
    names = {block: re.split(r"[. ()]+", block.path) for block in every}
    inside = [block for block in every if re.match(rf"{re.escape(path)}([. ]|$)", block.path)]
    inside = inside or [block for block in every if path in names[block]]
    inside = inside or [
        block for block in every if any(path in (key.name, f"{block.path}.{key.name}") for key in block.keys)
    ]
    if not inside:
        known = {name for of_block in names.values() for name in of_block} | {k.name for b in every for k in b.keys}
        hint = did_you_mean(path.rpartition(".")[2], sorted(known - {""})) or " `finetune keys` lists the first keys."
        raise RecipeError(f"No key, schedule or strategy of a recipe is called `{path}`.{hint}")
    return tuple(inside)


def markdown(block: Block) -> str:
    """Returns a mapping as a table in Markdown."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in block.keys:
        cells = (f"`{key.name}`", key.values, key.default and f"`{key.default}`", key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _blocks(part: type[Part], path: str) -> Iterator[Block]:
    notes, hints = meanings(part), get_type_hints(part, include_extras=True)
    keys, inner = [], []
    for name, field in part.model_fields.items():
        written = field.alias or name
        keys.append(Key(written, _values(hints[name]), default_text(field), notes.get(written, notes.get(name, ""))))
        inner += [(f"{path}.{written}".lstrip("."), each) for each in _parts(hints[name])]
    about = re.sub(r"\s+", " ", (part.__doc__ or "").partition("\n\n")[0])
    yield Block(path, about, tuple(keys))
    for place, each in inner:
        if "schedule" not in each.model_fields:
            yield from _blocks(each, place + (f" ({_kind(each)})" if _kind(each) else ""))


def _parts(hint: Any) -> Iterator[type[Part]]:
    """Yields the mappings whose keys the schema knows in an annotation."""
    if isinstance(hint, type) and issubclass(hint, Part) and not issubclass(hint, Named):
        yield hint
    for inner in get_args(hint):
        yield from _parts(inner)


def _kind(part: type[Part]) -> str:
    """Returns the name of a schedule or strategy, or an empty text."""
    field = part.model_fields.get("schedule") or part.model_fields.get("strategy")
    return str(get_args(field.annotation)[0]) if field else ""


def takes_arguments(part: type[Part]) -> bool:
    """Returns whether a mapping names something of Keras, with its arguments beside the name."""
    return len(part.model_fields) == 2 and "arguments" in part.model_fields


def meanings(part: type[Part]) -> dict[str, str]:
    """Returns what the docstrings of a class and of its bases say about each field, by its name or its key."""
    notes: dict[str, str] = {}
    for base in reversed(part.__mro__):
        docstring = inspect.cleandoc(base.__dict__.get("__doc__") or "")  # Python 3.13 does so by itself
        _, _, listing = docstring.partition("Attributes:\n")
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listing, re.MULTILINE):
            notes[name] = re.sub(r"\s+", " ", text).strip()
    return notes


def default_text(field: FieldInfo) -> str:
    """Returns the default of a field as YAML, `required` where it has none, empty where it says nothing."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    value = value.name if isinstance(value, Named) else value
    if value is None or value in ((), {}) or isinstance(value, Part):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _values(hint: Any) -> str:
    """Returns what an annotation takes, in words."""
    metadata: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *outer = get_args(hint)
        metadata += [each for item in outer for each in (item.metadata if isinstance(item, FieldInfo) else [item])]
    origin, arguments = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    choices = next((each.func.known for each in metadata if hasattr(getattr(each, "func", None), "known")), ())
    if choices or origin is Literal:
        known = [each for each in choices or arguments if each is not None]
        return ", ".join(f"`{each if isinstance(each, str) else json.dumps(each)}`" for each in known)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(_values, arguments))))
    if origin is tuple:
        inner, lengths = _values(arguments[0]), [getattr(each, "max_length", None) for each in metadata]
        count = next((f"{length} x " for length in lengths if length), "")
        return f"{inner}, or a list" if IN_A_LIST in metadata else f"list of {count}{inner}"
    if origin is dict:
        return " of ".join(filter(None, ("mapping", _values(arguments[1]))))
    if isinstance(hint, type) and issubclass(hint, Part):
        names = [key for key in ("schedule", "strategy") if key in hint.model_fields]
        if issubclass(hint, Named):
            known = ", ".join(f"`{name}`" for name in OPTIMIZERS) if hint is OptimizerSpec else "name"
            return f"{known}, or mapping of `name` and its arguments"
        return f"mapping with `{names[0]}`" if names else "mapping"
    return _WORDS.get(hint, "") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    pairs = [(sign, getattr(each, name, None)) for each in metadata for name, sign in _SIGNS.items()]
    # Upper bounds that only keep out typing errors say nothing to a reader.
    return ",".join(f" {sign} {bound:g}" for sign, bound in pairs if bound is not None and bound < 2**32)
