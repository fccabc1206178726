"""Turns pydantic's validation errors into sentences, each with its place in the recipe."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune.recipe.fields import show
from finetune.recipe.text import Node, Problem, read_scalar
from finetune.recipe.yaml_tree import follow

_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be `true` or `false`",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
}
# Steps that pydantic inserts.
_INSERTED = {
    *("<number>", "<schedule>", "<list>", "<strategy>", "<loss>", "<losses>", "<metrics>", "<by output>"),
    *("arguments", "[key]"),
}


def problems_of(error: ValidationError, tree: Node) -> Iterator[Problem]:
    """Describes every validation error.

    Args:
        error: The errors of the schema.
        tree: The recipe that was validated.

    Yields:
        A problem for each error: its sentence, and where the value or the key was written. A missing key has the place
        of the mapping that should hold it.
    """
    for detail in error.errors(include_url=False):
        context = detail.get("ctx", {})
        steps = _written_steps((*detail["loc"], *context.get("at", ())), tree)
        node, passed, names = follow(tree, steps)
        is_missing = len(passed) <= len(steps)
        is_key = detail["type"] == "invalid_key" or detail["loc"][-1:] == ("[key]",)
        about = "key" if is_key else context.get("about", "value")
        if about == "mapping":
            names = names[:-1]
            node = node if is_missing else passed[-2]
        by_key = about != "value" or is_missing
        place = (by_key and node.key_place) or node.place
        predicate = _predicate(detail, context, names)
        subject = f"`{'.'.join(names)}`" if names else "the recipe"
        yield Problem(place, f"{subject} {predicate}" + ("" if predicate[-1] in ".?" else "."))


def _written_steps(loc: tuple[Any, ...], tree: Node) -> list[Any]:
    """Removes from pydantic's path what the user did not write: tags of unions, and the index in `exclude: head`."""
    steps: list[Any] = []
    node: Node | None = tree
    for step in loc:
        child = node.child(step) if node else None
        if child is None and (step in _INSERTED or _is_scalar_for(step, node)):
            continue
        steps.append(step)
        node = child
    return steps


def _is_scalar_for(step: Any, node: Node | None) -> bool:
    """Whether the step leads below a value that is short for a list or a mapping: `exclude: head`."""
    return node is not None and not isinstance(node.value, list if isinstance(step, int) else dict | list)


def _predicate(error: ErrorDetails, context: dict[str, Any], names: list[str]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "fault":
        return context["predicate"]
    if kind == "missing":
        return f"is missing. Add it under `{'.'.join(names[:-1])}`" if names[1:] else "is missing. Add it"
    if kind == "invalid_key":
        return "is a key, and keys are text. Put it in quotes"
    rule = _RULES.get(kind, "is not valid: {msg}").format(**{"msg": error["msg"], **context})
    return f"{rule}. Received: {show(value)}{_hint(kind, value, names[-1:])}"


def _hint(kind: str, value: Any, name: list[str]) -> str:
    # Python converts at most 4300 digits; nobody needs a hint there.
    is_short = isinstance(value, str) and len(value) < 100
    if kind in ("int_type", "float_type") and is_short and isinstance(read_scalar(value), int | float):
        return ". Remove the quotes"
    if kind == "int_type" and isinstance(value, float) and name in (["decay_steps"], ["warmup_steps"]) and value % 1:
        return f". Steps are whole, and epochs need not be: `{name[0].removesuffix('steps')}epochs`"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f". Write `{int(value)}`"
    if kind == "string_type" and isinstance(value, int | float):
        return ". Put it in quotes"
    if kind == "bool_type" and value in ("true", "false"):
        return ". Remove the quotes"
    if kind == "greater_than" and value == 0 and name in (["learning_rate"], ["initial"], ["peak"]):
        return ". To keep layers unchanged, set `frozen: true`"
    return ""
