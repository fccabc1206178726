"""Operations on trees of nodes: merge two, replace a value, look up a place, report problems."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from finetune.errors import RecipeError, counted, did_you_mean, quote
from finetune.recipe.text import Node, Place, Problem


def merged(base: Node, top: Node) -> Node:
    """Merges a tree into a base: mappings are merged key by key, everything else is replaced by `top`."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    # Lists are replaced as a whole: merging two lists of groups entry by entry would mix different groups.
    nodes = {key: merged(base.value[key], node) if key in base.value else node for key, node in top.value.items()}
    return replace(top, value={**base.value, **nodes})


def with_value(node: Node, keys: Sequence[str | int], new: Node, *, above: tuple[str, ...] = ()) -> Node:
    """Returns the tree with another value at the end of a path.

    Args:
        node: The tree.
        keys: Keys of mappings; names or indices of list entries, the latter also as text. Missing mappings are
            created.
        new: The value.
        above: Keys that led to `node`, for messages.

    Raises:
        RecipeError: The path leads through a value that is not a mapping, or past the end of a list.
    """
    if not keys:
        # An override has no place in a file, so its option is the place of the key, too.
        return replace(new, key_place=new.place)
    key, below = keys[0], (*above, str(keys[0]))
    if node.value is None or isinstance(node.value, dict):
        # `null` counts as an empty mapping: `--set restore.from=a.h5` works where the file says `restore:`.
        nodes = node.value or {}
        child = nodes.get(key, Node({}, new.place))
        return replace(node, value={**nodes, key: with_value(child, keys[1:], new, above=below)})
    if isinstance(node.value, list):
        index = _index(node.value, key, above)
        nodes = list(node.value)
        nodes[index] = with_value(nodes[index], keys[1:], new, above=below)
        return replace(node, value=nodes)
    raise RecipeError(f"`{'.'.join(above)}` is `{node.value}`, not a mapping, so it has no `{key}`. Set it as a whole.")


def tree_of(data: Any, place: Place) -> Node:
    """Returns plain data as a tree, all of it written at the same place."""
    if isinstance(data, dict):
        return Node({key: tree_of(item, place) for key, item in data.items()}, place)
    return Node([tree_of(item, place) for item in data] if isinstance(data, list | tuple) else data, place)


def name_of(node: Node) -> str | None:
    """Returns the `name` of a list entry, if it has one."""
    name = node.child("name")
    return name.value if name and isinstance(name.value, str) else None


def _index(nodes: Sequence[Node], key: str | int, above: tuple[str, ...]) -> int:
    if isinstance(key, int):
        return key
    names = [name_of(node) for node in nodes]
    # A name wins over an index, so a group that is named `0` can be reached.
    if key in names:
        return names.index(key)
    # `isdecimal` accepts digits of all scripts.
    if key.isdecimal() and key.isascii() and len(key) < 9 and int(key) < len(nodes):
        return int(key)
    known = [name for name in names if name]
    entries = f"has {counted(len(nodes), 'entry', 'entries')}, counted from 0" + (f": {quote(known)}" if known else "")
    raise RecipeError(f"`{'.'.join(above)}` {entries}. Received: `{key}`.{did_you_mean(key, known)}")


def follow(node: Node, keys: Iterable[str | int]) -> tuple[Node, list[Node], list[str]]:
    """Walks down as far as the keys lead.

    Returns:
        The last node reached; every node on the way, from the root to the last; and the keys as users know them, up
        to the first that leads nowhere: entries of a list by their `name` if they have one.
    """
    passed, names = [node], []
    for key in keys:
        child = passed[-1].child(key)
        # The key that leads nowhere is appended before the loop ends: it is the last part of the name in a message.
        names.append(str((child and isinstance(key, int) and name_of(child)) or key))
        if child is None:
            break
        passed.append(child)
    return passed[-1], passed, names


def report(problems: Iterable[Problem], *, limit: int = 5) -> RecipeError:
    """Combines problems into a single error, in the order of their places; shows `limit` of them."""

    def order(problem: Problem) -> tuple[bool, str, int, int]:
        place = problem.place
        # Files come before options, which have no line; within a file the order is that of the text.
        return (not place.line, place.source, place.line, place.column)

    # A file that is extended twice, or an alias used twice, would report the same problem twice.
    lines = list(dict.fromkeys(f"{problem.place}: {problem.message}" for problem in sorted(problems, key=order)))
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return RecipeError("\n".join([*lines[:limit], *more]))
