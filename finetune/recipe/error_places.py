"""Every refusal of a recipe has the place of a key: the door that builds a key puts it in front of what it raises.

What is built from a recipe takes plain arguments and knows no recipe, so its errors say what is wrong and not where it
was written. Each function of `finetune.build` that builds a key is such a door, by `located_at`. An error that passes
several doors, or that a module of `build` has placed more exactly, keeps the innermost place.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from finetune.errors import FinetuneError, LockError, RecipeError
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe
from finetune.recipe.text import Node
from finetune.recipe.yaml_tree import follow

_P = ParamSpec("_P")
_T = TypeVar("_T")


def located_at(
    *keys: str,
) -> Callable[[Callable[Concatenate[Recipe, _P], _T]], Callable[Concatenate[Recipe, _P], _T]]:
    """Makes a function of a recipe and other arguments a door: see `located`.

    Args:
        keys: The keys that lead to what the function builds.
    """

    def as_door(function: Callable[Concatenate[Recipe, _P], _T]) -> Callable[Concatenate[Recipe, _P], _T]:
        @wraps(function)
        def door(recipe: Recipe, *args: _P.args, **options: _P.kwargs) -> _T:
            with located(recipe, *keys):
                return function(recipe, *args, **options)

        return door

    return as_door


@contextmanager
def located(recipe: Recipe, *keys: str) -> Iterator[None]:
    """Puts the place of a key in front of a refusal in the block, unless it has a place already.

    A message that names another key beside or below that key, such as `exclude` under `restore`, gets the place of that
    key. The class of the error stays. Errors of training and writing are about no key.

    Args:
        recipe: The recipe; one that was not loaded from a file has no places.
        keys: The keys that lead to what the block builds.

    Raises:
        FinetuneError: What the block raises.
        RecipeError: A value that follows from the recipe breaks a rule of the schema.
    """
    try:
        yield
    except FinetuneError as error:
        tree: Node | None = recipe._tree
        text = str(error)
        if tree is None or error.exit_code != 2 or isinstance(error, LockError) or has_place(text, tree):
            raise
        named = _named_key(text, tree, keys)
        raise type(error)(f"{place_of(recipe, *named)}: `{'.'.join(named)}`: {text}") from error
    except ValidationError as error:  # of a group or phase that a strategy has written out
        detail = error.errors(include_url=False)[0]
        predicate = detail.get("ctx", {}).get("predicate", detail["msg"])
        what = ".".join(str(step) for step in detail["loc"] if "<" not in str(step))
        raise RecipeError(
            f"{place_of(recipe, *keys)}: `{'.'.join(keys)}`: the `{what}` that follows from it {predicate}."
        ) from error


def has_place(text: str, tree: Node) -> bool:
    """Returns whether a message begins with a place in one of the files or options of a recipe."""
    return any(text.startswith(f"{source}:") for source in _sources(tree))


def _named_key(text: str, tree: Node, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the keys that lead to the first key that the message names, or as far as the recipe has them."""
    node, passed, _ = follow(tree, keys)
    keys = keys[: len(passed) - 1]
    above = keys if isinstance(node.value, dict) else keys[:-1]
    section = follow(tree, above)[0]
    names = re.findall(rf"`(?:{re.escape('.'.join(above))}\.)?(\w+)[`:=.\[]", text)
    named = next((name for name in names if section.child(name)), None)
    return (*above, named) if named else keys or ("model",)


def _sources(node: Node) -> set[str]:
    children = node.value.values() if isinstance(node.value, dict) else node.value
    below = children if isinstance(node.value, dict | list) else ()
    return {node.place.source}.union(*map(_sources, below))
