"""Layer groups of a model: every trainable variable in exactly one group.

`resolve_groups` is the way in. It takes a list of selectors, or the name of a strategy that makes a group of each layer
or each block.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import keras

from finetune.errors import GroupError, counted, did_you_mean, quote
from finetune.groups.frozen_by import QUANTIZED, advice_on_frozen_in_file, reason_frozen
from finetune.groups.layer_tree import LayerTree, Leaf, layer_tree
from finetune.groups.selector_matching import (
    CONDITION_KINDS,
    ORDERS,
    Condition,
    malformed,
    matching_leaves,
    order_note,
    out_of_range,
    without_match,
)
from finetune.groups.strategies import STRATEGIES
from finetune.groups.untracked import advice_on_untracked
from finetune.sequences import one_or_more


@dataclass(frozen=True)
class Selector:
    """What a layer group asks for. A weight matches when any of the conditions does.

    Attributes:
        name: The group's name.
        prefixes: Names of layers or weights, matched at `/` boundaries: `a` takes `a/kernel`, not `ab/kernel`.
        regex: Regular expressions that must match a weight's whole name.
        layers: Slices or indices of `model.layers`: `"0:3"`, `"-1"`, `5`.
        variables: Slices or indices of the trainable variables: `"0:40"`, `"40:"`, `-1`.
        order: How `variables` counts: `graph`, as `model.trainable_variables` lists them, or `creation`, in the order
            in which they were made, as TF1 listed them. The two differ in functional models with branches. In a model
            that was loaded from a file the variables are made in the order of the graph.
        rest: Takes every weight that no other group takes, whatever its position in the list.
        frozen: `True`: the group is not trained. `None`: it is, except for what is not trainable when the groups are
            resolved, such as the kernel below a LoRA adapter, or a layer that was frozen by hand. `False`: that is
            trained, too.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    layers: tuple[str | int, ...] = ()
    variables: tuple[str | int, ...] = ()
    order: str = "graph"
    rest: bool = False
    frozen: bool | None = None

    def __post_init__(self) -> None:
        for kind in CONDITION_KINDS:
            object.__setattr__(self, kind, one_or_more(getattr(self, kind)))

    @property
    def conditions(self) -> list[Condition]:
        """All conditions, each by itself; `order` is for `variables` alone."""
        return [
            Condition(self.name, kind, value, self.order if kind == "variables" else "graph")
            for kind in CONDITION_KINDS
            for value in getattr(self, kind)
        ]


@dataclass(frozen=True)
class LayerGroup:
    """A named part of a model's weights.

    Attributes:
        name: Unique among the groups.
        leaves: Its weights in model order: trainable ones, and the non-trainable ones of the same layers
            (moving statistics), which follow them.
        frozen: Whether training leaves the group unchanged.
        order_note: In which order its `variables` were counted; empty for the default where both orders are the same.
        overlap_note: Which of its conditions match only what groups before it take; empty if none does.
    """

    name: str
    leaves: tuple[Leaf, ...]
    frozen: bool = False
    order_note: str = ""
    overlap_note: str = ""

    def __repr__(self) -> str:
        layers = quote(dict.fromkeys(leaf.layer for leaf in self.leaves))
        frozen = ", frozen" if self.frozen else ""
        return f"LayerGroup({self.name}: {counted(len(self.leaves), 'weight')} of {layers}{frozen})"

    @property
    def trainable(self) -> tuple[Leaf, ...]:
        """The leaves that train: without what other code froze, unless the group is frozen as a whole anyway."""
        return tuple(leaf for leaf in self.leaves if leaf.trainable and (self.frozen or not leaf.frozen_by))

    @property
    def variables(self) -> list[Any]:
        """The variables of `trainable`, in model order."""
        return [leaf.variable for leaf in self.trainable]


def resolve_groups(
    tree: LayerTree | Any, selectors: Selector | Iterable[Selector] | None = None, *, by: str | None = None
) -> tuple[LayerGroup, ...]:
    """Puts every weight of a model into exactly one layer group.

    The first selector that matches a trainable weight takes it; the selector with `rest` takes what is left.
    Non-trainable weights (moving statistics) follow the first trainable weight of their layer. A weight that other code
    has frozen before (LoRA, quantization, `layer.trainable = False`) stays frozen in its group, and so does a group
    that consists of such weights, unless the selector says `frozen=False`. Warns of layers that came frozen out of a
    file, and of trainable variables in layers that Keras does not see.

    Args:
        tree: The model's layer tree, or the model.
        selectors: One selector for each group, input to output, or a single one.
        by: Instead of `selectors`: `layer` makes a group of each layer with trainable weights, `block` a group of each
            block of layers.

    Returns:
        One group for each selector, in the order of `selectors`; with `by`, input to output.

    Raises:
        GroupError: The selectors do not partition the weights, a selector is wrong, or not exactly one of `selectors`
            and `by` was passed.

    Examples:
        >>> import keras
        >>> body, top = keras.layers.Dense(3, name="body"), keras.layers.Dense(2, name="top")
        >>> model = keras.Sequential([keras.Input((4,)), body, top])
        >>> [group.name for group in resolve_groups(model, by="layer")]
        ['body', 'top']
        >>> body, head = resolve_groups(model, [Selector("body", prefixes=("body",)), Selector("head", rest=True)])
        >>> [leaf.name for leaf in head.leaves]
        ['top/kernel', 'top/bias']
    """
    model = tree if isinstance(tree, keras.layers.Layer) else None  # else the plan of a recipe has the advice
    for sentence in advice_on_untracked(model) if model else ():
        warnings.warn(sentence, stacklevel=2)
    tree = _as_tree(tree)
    if (selectors is None) == (by is None):
        received = "both" if by is not None else "neither"
        raise GroupError(
            f"Layer groups are made from `selectors` or `by` a strategy. Received {received} of them. Write "
            '`resolve_groups(model, [Selector(...), ...])` or `resolve_groups(model, by="layer")`.'
        )
    selectors = one_or_more(selectors) if selectors is not None else selectors_by(tree, str(by))
    _check_form(selectors)
    conditions = [condition for selector in selectors for condition in selector.conditions]
    _raise_first_five([text for item in conditions if (text := malformed(item) or out_of_range(tree, item))])
    matched = {condition: matching_leaves(tree, condition) for condition in conditions}
    _raise_first_five([without_match(tree, condition) for condition in conditions if not matched[condition]])
    by_selector = [set().union(*(matched[condition] for condition in selector.conditions)) for selector in selectors]
    places = _assign(tree, selectors, by_selector)
    _check_cover(tree, selectors, by_selector, places)
    leaves = [tuple(compress(tree.leaves, (place == n for place in places))) for n in range(len(selectors))]
    made = (_make_group(selector, part) for selector, part in zip(selectors, leaves, strict=True))
    groups = tuple(
        replace(
            group,
            order_note=order_note(tree, selector.conditions),
            overlap_note=_overlap_note(selectors, matched, places, n),
        )
        for n, (group, selector) in enumerate(zip(made, selectors, strict=True))
    )
    unsaid = [leaf for g, s in zip(groups, selectors, strict=True) if s.frozen is None for leaf in g.leaves]
    for sentence in advice_on_frozen_in_file(model, unsaid) if model else ():
        warnings.warn(sentence, stacklevel=2)
    _check_trained(selectors, groups)
    return groups


def selectors_by(tree: LayerTree | Any, by: str) -> tuple[Selector, ...]:
    """Returns the selectors of a strategy, input to output.

    Args:
        tree: The model's layer tree, or the model.
        by: `layer` or `block`, see `finetune.groups.strategies`.

    Raises:
        GroupError: There is no such strategy.
    """
    if by not in STRATEGIES:
        raise GroupError(
            f"Layer groups are made `by` {quote(STRATEGIES)}. Received: `{by}`.{did_you_mean(by, list(STRATEGIES))}"
        )
    parts = STRATEGIES[by](_as_tree(tree))
    return tuple(Selector(name, prefixes=prefixes) for name, prefixes in parts.items())


def _as_tree(tree: LayerTree | Any) -> LayerTree:
    return tree if isinstance(tree, LayerTree) else layer_tree(tree)


def _raise_first_five(problems: Sequence[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise GroupError("\n".join([*problems[:5], *more]))


def _check_form(selectors: Sequence[Selector]) -> None:
    """Checks what can be checked without the model."""
    if not selectors:
        raise GroupError(
            "Layer groups need at least one selector. Received none. A single group with `rest: true` trains "
            "everything."
        )
    others = [selector for selector in selectors if not isinstance(selector, Selector)]
    if others:
        strategy = f" For a strategy write `by={others[0]!r}`." if others[0] in STRATEGIES else ""
        raise GroupError(f"Layer groups are made from `finetune.Selector`s. Received {quote(others)}.{strategy}")
    names = [selector.name for selector in selectors]
    bad = [name for name in names if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name))]
    if bad:
        raise GroupError(
            f"A group's name is made of letters, digits, `_`, `-` and `.`. Received: {quote(bad)}. Choose another name."
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise GroupError(f"Groups need different names. Received more than once: {quote(twice)}. Rename all but one.")
    _check_orders(selectors)
    takers = [selector.name for selector in selectors if selector.rest]
    if len(takers) > 1:
        raise GroupError(f"Only one group can have `rest: true`. Received it in {quote(takers)}. Keep one.")
    empty = [selector.name for selector in selectors if not selector.rest and not selector.conditions]
    if empty:
        raise GroupError(
            f"A group needs `prefixes`, `regex`, `layers`, `variables` or `rest: true`. Groups without a "
            f"selector: {quote(empty)}."
        )


def _check_orders(selectors: Sequence[Selector]) -> None:
    for selector in selectors:
        if selector.order not in ORDERS:
            raise GroupError(
                f"group `{selector.name}`: `order` is {' or '.join(f'`{order}`' for order in ORDERS)}. Received: "
                f"`{selector.order}`.{did_you_mean(str(selector.order), ORDERS)}"
            )
        if selector.order != "graph" and selector.variables == ():
            raise GroupError(
                f"group `{selector.name}`: `order` says how `variables` are counted, and the group has none. Remove "
                "`order`, or select by `variables`."
            )


def _assign(tree: LayerTree, selectors: Sequence[Selector], matches: Sequence[set[int]]) -> list[int | None]:
    """Returns for each leaf the position of its group; `None` for a trainable weight that no group takes.

    Order matters: first trainable weights by the first match, then moving statistics after the weights of their layer.
    A layer without trainable weights goes by what matches it, or else with the layer before it.
    """
    taker = next((n for n, selector in enumerate(selectors) if selector.rest), None)
    first = [next((n for n, hits in enumerate(matches) if at in hits), taker) for at in range(len(tree.leaves))]
    group_of_layer: dict[str, int | None] = {}
    for leaf, group in zip(tree.leaves, first, strict=True):
        if leaf.trainable:
            group_of_layer.setdefault(leaf.layer, group)
    places: list[int | None] = []
    for leaf, group in zip(tree.leaves, first, strict=True):
        if not leaf.trainable:
            group = group_of_layer.get(leaf.layer, group)
            group = group if group is not None else next((at for at in reversed(places) if at is not None), 0)
        places.append(group)
    return places


def _check_cover(
    tree: LayerTree, selectors: Sequence[Selector], matches: Sequence[set[int]], places: Sequence[int | None]
) -> None:
    """Checks that the groups partition the trainable weights, and that no group is empty."""
    without_group = [leaf.name for leaf, at in zip(tree.leaves, places, strict=True) if at is None]
    if without_group:
        raise GroupError(
            f"Every trainable variable must be in a group, and {len(without_group)} of {len(tree.trainable)} are in "
            f"none: {quote(without_group)}. Add a group for them, or a group with `rest: true`; set `frozen: "
            "true` there if they must not train."
        )
    _raise_first_five([_empty_group(selectors, matches, places, n) for n in range(len(selectors)) if n not in places])


def _make_group(selector: Selector, leaves: tuple[Leaf, ...]) -> LayerGroup:
    """Makes a group, of which what other code froze stays frozen unless the selector says `frozen=False`."""
    reasons = [reason_frozen(leaf) for leaf in leaves]
    # Integers cannot train, whatever the selector says.
    kept = [reason if reason == QUANTIZED or selector.frozen is not False else "" for reason in reasons]
    leaves = tuple(replace(leaf, frozen_by=reason) for leaf, reason in zip(leaves, kept, strict=True))
    group = LayerGroup(selector.name, leaves, bool(selector.frozen))
    return replace(group, frozen=True) if selector.frozen is None and any(kept) and not group.trainable else group


def _check_trained(selectors: Sequence[Selector], groups: Sequence[LayerGroup]) -> None:
    """Checks that every group that is to be trained has something to train, and that there is such a group."""
    idle = [group.name for group in groups if not group.trainable and not group.frozen]
    if idle:
        raise GroupError(
            f"A group needs a trainable weight, unless it is frozen. Groups without a trainable weight: "
            f"{quote(idle)}. Set `frozen: true` in them, or move their weights to another group."
        )
    if all(selector.frozen for selector in selectors):
        raise GroupError(
            f"At least one group must train, and all are frozen: {quote(s.name for s in selectors)}. Remove "
            "`frozen: true` from the last one, for example."
        )
    if all(group.frozen for group in groups):
        reasons = dict.fromkeys(leaf.frozen_by for group in groups for leaf in group.leaves if leaf.frozen_by)
        raise GroupError(
            "At least one group must train. What is not trainable when the groups are resolved stays frozen, and here "
            f"that is everything: {', '.join(reasons)}. Set `frozen: false` in the group to train, or make layers "
            "trainable before."
        )


def _empty_group(
    selectors: Sequence[Selector], matches: Sequence[set[int]], places: Sequence[int | None], n: int
) -> str:
    """Returns the error for a group all of whose weights other groups take."""
    name, takes_rest = selectors[n].name, selectors[n].rest
    matched = range(len(places)) if takes_rest else sorted(matches[n])
    takers = quote(dict.fromkeys(selectors[place].name for at in matched if (place := places[at]) is not None))
    if takes_rest:
        return (
            f"group `{name}` gets nothing: no weight is left for `rest: true`. All are taken by {takers}. "
            "Remove the group."
        )
    return (
        f"group `{name}` gets nothing: everything it matches is taken by {takers}. The first match wins, and moving "
        f"statistics go with their layer: put `{name}` before them, or narrow what they match."
    )


def _overlap_note(
    selectors: Sequence[Selector], matched: Mapping[Condition, set[int]], places: Sequence[int | None], n: int
) -> str:
    """Says of a group's conditions, of which others match something, which add nothing to it."""
    idle = [known for known in selectors[n].conditions if all(places[at] != n for at in matched[known])]
    if not idle:
        return ""
    takers = dict.fromkeys(
        selectors[place].name for known in idle for at in matched[known] if (place := places[at]) is not None
    )
    adds = f"{', '.join(map(str, idle[:5]))} {'adds' if len(idle) == 1 else 'add'} nothing to it"
    taken = f"{quote(takers)} {'takes' if len(takers) == 1 else 'take'} all that matches"
    return f"Group `{selectors[n].name}`: {adds}, since {taken}: the first match wins."
