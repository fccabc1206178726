"""Selectors to layer groups: every trainable variable in exactly one group."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Any, NamedTuple

from finetune.errors import GroupError, did_you_mean, quote
from finetune.groups.layer_tree import LayerTree, Leaf, layer_tree


@dataclass(frozen=True)
class Selector:
    """What a layer group asks for. A weight matches when any of the conditions does.

    Attributes:
        name: The group's name.
        prefixes: Names of layers or weights, matched at `/` boundaries: `a` takes `a/kernel`, not `ab/kernel`.
        regex: Regular expressions that must match a weight's whole name.
        layers: Slices or indices of `model.layers`: `"0:3"`, `"-1"`, `5`.
        variables: Slices or indices of the trainable variables: `"0:40"`, `"40:"`, `-1`.
        rest: Takes every weight that no other group takes, wherever it stands in the list.
        frozen: The group is not trained.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    layers: tuple[str | int, ...] = ()
    variables: tuple[str | int, ...] = ()
    rest: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class LayerGroup:
    """A named part of a model's weights.

    Attributes:
        name: Unique among the groups.
        leaves: Its weights in model order: trainable ones, and the non-trainable ones of the same layers
            (moving statistics), which follow them.
        frozen: Whether the group is left alone by training.
    """

    name: str
    leaves: tuple[Leaf, ...]
    frozen: bool = False

    @property
    def trainable(self) -> tuple[Leaf, ...]:
        """The leaves an optimizer updates when the group is not frozen."""
        return tuple(leaf for leaf in self.leaves if leaf.trainable)

    @property
    def variables(self) -> list[Any]:
        """The variables of `trainable`, in model order."""
        return [leaf.variable for leaf in self.trainable]


def resolve_groups(tree: LayerTree | Any, selectors: Iterable[Selector]) -> tuple[LayerGroup, ...]:
    """Puts every weight of a model into exactly one layer group.

    The first selector that matches a trainable weight takes it; the one with `rest` takes what is left. Non-trainable
    weights (moving statistics) follow the first trainable weight of their layer.

    Args:
        tree: The model's layer tree, or the model.
        selectors: One for each group, input to output.

    Returns:
        One group for each selector, in the given order.

    Raises:
        GroupError: The selectors do not partition the weights, or one of them is wrong.
    """
    tree, selectors = as_tree(tree), tuple(selectors)
    _check_form(selectors)
    elements = [element for selector in selectors for element in _elements(selector)]
    _fail([problem for element in elements if (problem := _malformed(element) or _beyond(tree, element))])
    hits = {element: _hits(tree, element) for element in elements}
    _fail([_dead(tree, element) for element in elements if not hits[element]])
    matches = [set().union(*(hits[element] for element in _elements(selector))) for selector in selectors]
    places = _assign(tree, selectors, matches)
    _check_cover(tree, selectors, matches, places)
    leaves = [tuple(compress(tree.leaves, (place == n for place in places))) for n in range(len(selectors))]
    return tuple(LayerGroup(s.name, own, s.frozen) for s, own in zip(selectors, leaves, strict=True))


def as_tree(tree: LayerTree | Any) -> LayerTree:
    return tree if isinstance(tree, LayerTree) else layer_tree(tree)


def _fail(problems: Sequence[str]) -> None:
    """Raises when there are problems, and tells five of them."""
    if problems:
        more = [f"... and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise GroupError("\n".join([*problems[:5], *more]))


# The selectors by themselves


class _Element(NamedTuple):
    """One prefix, regular expression or slice of a selector."""

    group: str
    kind: str
    value: Any

    def __str__(self) -> str:
        return f"`{self.kind}: [{self.value}]`"


def _elements(selector: Selector) -> list[_Element]:
    found = []
    for kind in ("prefixes", "regex", "layers", "variables"):
        values = getattr(selector, kind)
        several = values if isinstance(values, (tuple, list)) else (values,)  # `prefixes="head"` is meant as one
        found += [_Element(selector.name, kind, value) for value in several]
    return found


def _check_form(selectors: Sequence[Selector]) -> None:
    if not selectors:
        raise GroupError("Layer groups need at least one selector. Received none. A single `rest: true` trains all.")
    names = [selector.name for selector in selectors]
    bad = [name for name in names if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name))]
    if bad:
        raise GroupError(
            f"A group's name is made of letters, digits, `_`, `-` and `.`. Received: {quote(bad)}. Give another name."
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise GroupError(f"Groups need different names. Received more than once: {quote(twice)}. Rename all but one.")
    rests = [selector.name for selector in selectors if selector.rest]
    if len(rests) > 1:
        raise GroupError(f"Only one group can take the rest. Received `rest: true` in {quote(rests)}. Keep one.")
    lost = [selector.name for selector in selectors if not selector.rest and not _elements(selector)]
    if lost:
        raise GroupError(
            f"A group needs `prefixes`, `regex`, `layers`, `variables` or `rest: true`. Without any: {quote(lost)}."
        )


def _malformed(element: _Element) -> str:
    group, kind, value = element
    try:
        if kind == "regex":
            re.compile(value)
        elif kind != "prefixes":
            _place(value)
        elif not isinstance(value, str) or not value.strip("/"):
            raise ValueError("name of a layer or weight. Write one such as `head`")
    except ValueError as error:
        return f"group `{group}`: {element} is no {error}."
    except (re.error, TypeError) as error:
        return f"group `{group}`: {element} is no regular expression: {error}. Correct it, or use `prefixes`."
    return ""


def _place(value: Any) -> slice | int:
    """Reads an index or a slice."""
    is_whole = isinstance(value, (int, str)) and not isinstance(value, bool)
    match = re.fullmatch(r"\s*(-?\d+)?\s*(?:(:)\s*(-?\d+)?\s*(?::\s*(\d*[1-9]\d*)?\s*)?)?", str(value))
    if not is_whole or not match or not str(value).strip():
        raise ValueError("index or slice. Write one such as `3`, `-1`, `0:40`, `40:` or `::2`")
    if not match[2]:
        return int(match[1])
    return slice(*(None if end is None else int(end) for end in match.group(1, 3, 4)))


# The selectors against the model


def _counted(tree: LayerTree, kind: str) -> tuple[tuple[str, ...], str]:
    if kind == "layers":
        return tree.layers, "layers"
    return tuple(leaf.name for leaf in tree.trainable), "trainable variables"


def _beyond(tree: LayerTree, element: _Element) -> str:
    if element.kind in ("prefixes", "regex"):
        return ""
    names, what = _counted(tree, element.kind)
    at, size = _place(element.value), len(names)
    ends = (at.start or 0, at.stop or 0) if isinstance(at, slice) else (at if at < 0 else at + 1,)
    if all(abs(end) <= size for end in ends):
        return ""
    return (
        f"group `{element.group}`: {element} reaches beyond the model, which has {size} {what}: `0` to `{size - 1}`, "
        f"or `-{size}` to `-1` counted from the end. Leave an end open, as in `0:`, to take everything up to it."
    )


def _hits(tree: LayerTree, element: _Element) -> set[int]:
    """Returns the positions of the leaves that the element matches."""
    kind, value = element.kind, element.value
    if kind == "prefixes":
        prefix = value.strip("/")
        return {n for n, leaf in enumerate(tree.leaves) if f"{leaf.name}/".startswith(f"{prefix}/")}
    if kind == "regex":
        return {n for n, leaf in enumerate(tree.leaves) if re.fullmatch(value, leaf.name)}
    chosen = set(_chosen(tree, element))
    if kind == "layers":
        return {n for n, layer in enumerate(_top_layers(tree)) if layer in chosen}
    return {n for n, leaf in enumerate(tree.leaves) if leaf.name in chosen}


def _chosen(tree: LayerTree, element: _Element) -> Sequence[str]:
    names, at = _counted(tree, element.kind)[0], _place(element.value)
    return names[at] if isinstance(at, slice) else (names[at],)


def _top_layers(tree: LayerTree) -> list[str]:
    """Returns for each leaf the one of the model's own layers that holds it; empty when none does."""
    layers = set(tree.layers)
    return [next((path for path in reversed(paths_down(leaf.name)) if path in layers), "") for leaf in tree.leaves]


def _dead(tree: LayerTree, element: _Element) -> str:
    group, kind, value = element
    if kind == "prefixes":
        advice = f"The model's top layers are {quote(_with_weights(tree))}.{_suggestion(tree, value.strip('/'))}"
        if value.strip("/") in tree.layers:
            advice = "That layer has no weights of its own. Remove it from the list."
    elif kind == "regex":
        inside = next((leaf.name for leaf in tree.leaves if re.search(value, leaf.name)), "")
        advice = f"It must match a weight's whole name, such as `{inside or tree.leaves[0].name}`."
        advice += f" Did you mean `.*{value}.*`?" if inside else ""
    elif names := _chosen(tree, element):
        advice = f"No weights of their own have {quote(names)}. Layers with weights are {quote(_with_weights(tree))}."
    else:
        advice = "The slice is empty: it must end after it starts."
    return f"group `{group}` matches nothing: {element}. {advice}"


def _with_weights(tree: LayerTree) -> list[str]:
    return [layer for layer in dict.fromkeys(_top_layers(tree)) if layer]


def _suggestion(tree: LayerTree, wanted: str) -> str:
    layers = [path for leaf in tree.leaves for path in paths_down(leaf.layer)]
    deeper = [layer for layer in layers if layer.endswith(f"/{wanted}")]
    renamed = [leaf.layer for leaf in tree.leaves if leaf.layer and getattr(leaf.owner, "name", None) == wanted]
    found = list(dict.fromkeys(deeper + renamed))[:3]
    if found:
        return f" Did you mean {' or '.join(f'`{name}`' for name in found)}?"
    return did_you_mean(wanted, [*layers, *(leaf.name for leaf in tree.leaves)])


def _assign(tree: LayerTree, selectors: Sequence[Selector], matches: Sequence[set[int]]) -> list[int | None]:
    """Returns for each leaf the position of its group; `None` for a trainable weight that no group takes."""
    rest = next((n for n, selector in enumerate(selectors) if selector.rest), None)
    first = [next((n for n, taken in enumerate(matches) if at in taken), rest) for at in range(len(tree.leaves))]
    layer_group: dict[str, int | None] = {}
    for leaf, group in zip(tree.leaves, first, strict=True):
        if leaf.trainable:
            layer_group.setdefault(leaf.layer, group)
    places: list[int | None] = []
    for leaf, group in zip(tree.leaves, first, strict=True):
        if not leaf.trainable:
            group = layer_group.get(leaf.layer, group)
            group = group if group is not None else next((at for at in reversed(places) if at is not None), 0)
        places.append(group)
    return places


def _check_cover(
    tree: LayerTree, selectors: Sequence[Selector], matches: Sequence[set[int]], places: Sequence[int | None]
) -> None:
    left = [leaf.name for leaf, at in zip(tree.leaves, places, strict=True) if at is None]
    if left:
        raise GroupError(
            f"Every trainable variable must be in a group, and {len(left)} of {len(tree.trainable)} are in none: "
            f"{quote(left)}. Add a group for them, or `rest: true` to one; with `frozen: true` it leaves them alone."
        )
    _fail([_robbed(selectors, matches, places, n) for n in range(len(selectors)) if n not in places])
    trained = {at for leaf, at in zip(tree.leaves, places, strict=True) if leaf.trainable}
    idle = [s.name for n, s in enumerate(selectors) if n not in trained and not s.frozen]
    if idle:
        raise GroupError(
            f"A group needs a trainable weight, unless it is frozen. Without one: {quote(idle)}. Say `frozen: true` "
            "there, or put its weights into another group."
        )
    if all(selector.frozen for selector in selectors):
        raise GroupError(
            f"One group at least must train, and every one is frozen: {quote(s.name for s in selectors)}. Remove "
            "`frozen: true` from the last one, for example."
        )


def _robbed(selectors: Sequence[Selector], matches: Sequence[set[int]], places: Sequence[int | None], n: int) -> str:
    name, wants_rest = selectors[n].name, selectors[n].rest
    wanted = range(len(places)) if wants_rest else sorted(matches[n])
    thieves = quote(dict.fromkeys(selectors[place].name for at in wanted if (place := places[at]) is not None))
    if wants_rest:
        return (
            f"group `{name}` gets nothing: no weight is left for `rest: true`. All are taken by {thieves}. Remove it."
        )
    return (
        f"group `{name}` gets nothing: everything it matches is taken by {thieves}. The first match wins, and moving "
        f"statistics go with their layer: put `{name}` before them, or let them take less."
    )


def paths_down(name: str) -> list[str]:
    """Returns `a`, `a/b`, `a/b/c` for `a/b/c`."""
    return list(accumulate(name.split("/"), lambda path, part: f"{path}/{part}"))
