"""The conditions of a selector: prefixes, regular expressions and slices, checked and matched against a layer tree.

A selector is a disjunction: a weight belongs to it when any of its conditions matches. Each condition is read here on
its own, so that an error can name exactly the entry that is wrong.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune.errors import as_list, counted, did_you_mean, quote
from finetune.groups.layer_tree import LayerTree, paths_down

CONDITION_KINDS = ("prefixes", "regex", "layers", "variables")
ORDERS = ("graph", "creation")  # of `model.trainable_variables`, or that in which the variables were made, as in TF1


class Condition(NamedTuple):
    """An entry of a selector.

    Attributes:
        group: Name of the group that the selector is for.
        kind: One of `CONDITION_KINDS`.
        value: The prefix, the regular expression, or the index or slice as it was written.
        order: How `variables` are counted, one of `ORDERS`.
    """

    group: str
    kind: str
    value: Any
    order: str = "graph"

    def __str__(self) -> str:
        return f"`{self.kind}: [{self.value}]`"


def malformed(condition: Condition) -> str:
    """Returns what is wrong with a condition whatever the model, as a sentence; empty when nothing is."""
    group, kind, value, _ = condition
    if kind == "regex":
        try:
            re.compile(value)
        except (re.error, TypeError) as error:
            return f"group `{group}`: {condition} is not a regular expression: {error}. Correct it, or use `prefixes`."
    elif kind == "prefixes":
        if not isinstance(value, str) or not value.strip("/"):
            return f"group `{group}`: {condition} is not the name of a layer or weight. Write a name such as `head`."
    elif _index_or_slice(value) is None:
        return (
            f"group `{group}`: {condition} is not an index or slice. Write an index such as `3`, `-1`, `0:40`, "
            "`40:` or "
            "`::2`."
        )
    return ""


def out_of_range(tree: LayerTree, condition: Condition) -> str:
    """Returns a sentence when an index or slice ends beyond the model; Python would silently cut the slice short."""
    if condition.kind in ("prefixes", "regex"):
        return ""
    names, what = _counted(tree, condition)
    at, size = _index_or_slice(condition.value), len(names)
    ends = (at.start or 0, at.stop or 0) if isinstance(at, slice) else (at if at < 0 else at + 1,)
    if all(abs(end) <= size for end in ends):
        return ""
    return (
        f"group `{condition.group}`: {condition} reaches beyond the model, which has {size} {what}: `0` to "
        f"`{size - 1}`, or `-{size}` to `-1` counted from the end. Leave an end open, as in `0:`, to take everything "
        "up to it."
    )


def matching_leaves(tree: LayerTree, condition: Condition) -> set[int]:
    """Returns the positions in `tree.leaves` that a well-formed condition matches."""
    kind, value = condition.kind, condition.value
    if kind == "prefixes":
        # A slash on both sides makes `block_1` match `block_1/kernel`, and not `block_10/kernel`.
        prefix = f"{value.strip('/')}/"
        return {n for n, leaf in enumerate(tree.leaves) if f"{leaf.name}/".startswith(prefix)}
    if kind == "regex":
        return {n for n, leaf in enumerate(tree.leaves) if re.fullmatch(value, leaf.name)}
    chosen = set(_chosen(tree, condition))
    if kind == "layers":
        return {n for n, layer in enumerate(_top_layers(tree)) if layer in chosen}
    return {n for n, leaf in enumerate(tree.leaves) if leaf.name in chosen}


def order_note(tree: LayerTree, conditions: Sequence[Condition]) -> str:
    """Says in which order a selector counts its `variables`; empty for the default where both orders are the same."""
    counting = [condition for condition in conditions if condition.kind == "variables"]
    graph, creation = (
        set().union(*(matching_leaves(tree, Condition(*condition[:3], order)) for condition in counting))
        for order in ORDERS
    )
    if graph == creation and all(condition.order == "graph" for condition in counting):
        return ""
    counts = f"Group `{counting[0].group}`: {', '.join(map(str, counting))} counts the trainable variables"
    if graph == creation:
        return f"{counts} in the order in which they were made (`order: creation`), here that of the model's graph."
    others = f"{len(graph - creation)} of the {len(graph)} variables would be others"
    used = {
        "graph": "in the order of the model's graph (`order: graph`). In the order in which they were made, as TF1 "
        f"did, {others} (`order: creation`).",
        "creation": "in the order in which they were made, as TF1 did (`order: creation`). In the order of the "
        f"model's graph {others} (`order: graph`).",
    }[counting[0].order]
    return f"{counts} {used}"


def without_match(tree: LayerTree, condition: Condition) -> str:
    """Returns the error for a condition that matches nothing, with the names that come nearest."""
    group, kind, value, _ = condition
    if kind == "prefixes":
        advice = f"The model's top layers are {quote(_with_weights(tree))}.{_near_names(tree, value.strip('/'))}"
        if begun := [layer for layer in _with_weights(tree) if layer.startswith(value.strip("/"))]:
            advice = (
                f"A prefix ends at a `/`, or is a whole name, and {counted(len(begun), 'layer')} only begin"
                f"{'s' if len(begun) == 1 else ''} with it: {quote(begun, limit=3)}. Write "
                f"`regex: '{re.escape(value.strip('/'))}.*'` instead to take {'it' if len(begun) == 1 else 'them'}."
            )
        if value.strip("/") in tree.layers:
            advice = "That layer has no weights. Remove it from the list."
        elif "," in value:
            advice += as_list(value)
    elif kind == "regex":
        inside = next((leaf.name for leaf in tree.leaves if re.search(value, leaf.name)), "")
        advice = f"It must match the whole name of a weight, such as `{inside or tree.leaves[0].name}`."
        advice += f" Did you mean `.*{value}.*`?" if inside else ""
    elif names := _chosen(tree, condition):
        advice = f"{quote(names)} have no weights. Layers with weights are {quote(_with_weights(tree))}."
    else:
        advice = "The slice is empty: it must end after it starts."
    return f"group `{group}` matches nothing: {condition}. {advice}"


def _index_or_slice(value: Any) -> Any:
    """Reads `5`, `"-1"` or `"0:40"` as Python would index a list; returns `None` for anything else."""
    is_whole = isinstance(value, (int, str)) and not isinstance(value, bool)
    match = re.fullmatch(r"\s*(-?\d+)?\s*(?:(:)\s*(-?\d+)?\s*(?::\s*(\d*[1-9]\d*)?\s*)?)?", str(value))
    if not is_whole or not match or not str(value).strip():
        return None
    if not match[2]:  # no colon
        return int(match[1])
    return slice(*(None if end is None else int(end) for end in match.group(1, 3, 4)))


def _counted(tree: LayerTree, condition: Condition) -> tuple[tuple[str, ...], str]:
    """Returns the names that the indices of a condition count, and what to call them."""
    if condition.kind == "layers":
        return tree.layers, "layers"
    leaves = tree.by_creation if condition.order == "creation" else tree.trainable
    return tuple(leaf.name for leaf in leaves), "trainable variables"


def _chosen(tree: LayerTree, condition: Condition) -> Sequence[str]:
    names, at = _counted(tree, condition)[0], _index_or_slice(condition.value)
    return names[at] if isinstance(at, slice) else (names[at],)


def _top_layers(tree: LayerTree) -> list[str]:
    """Returns for each leaf the entry of `model.layers` that holds it; empty when none does."""
    layers = set(tree.layers)
    return [next((path for path in reversed(paths_down(leaf.name)) if path in layers), "") for leaf in tree.leaves]


def _with_weights(tree: LayerTree) -> list[str]:
    return [layer for layer in dict.fromkeys(_top_layers(tree)) if layer]


def _near_names(tree: LayerTree, name: str) -> str:
    """Offers layers of that name deeper in the model, then layers that Keras calls so, then similar names."""
    layers = [path for leaf in tree.leaves for path in paths_down(leaf.layer)]
    deeper = [layer for layer in layers if layer.endswith(f"/{name}")]
    renamed = [leaf.layer for leaf in tree.leaves if leaf.layer and getattr(leaf.owner, "name", None) == name]
    if same_name := list(dict.fromkeys(deeper + renamed))[:3]:
        return f" Did you mean {' or '.join(f'`{layer}`' for layer in same_name)}?"
    return did_you_mean(name, [*layers, *(leaf.name for leaf in tree.leaves)])
