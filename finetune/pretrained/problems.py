"""What speaks against restoring a file, each kind of problem in one text with advice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import TypeVar

from finetune.errors import did_you_mean, nearest, quote
from finetune.groups.layer_tree import LayerTree, Leaf
from finetune.pretrained.formats.weight_file import Tensor
from finetune.pretrained.matching_rules import Pair
from finetune.pretrained.restore_plan import RestorePlan, dtype_of, is_under, shape_of

_SHOWN = 5
_Item = TypeVar("_Item")


def dead_prefixes(tree: LayerTree, exclude: Sequence[str]) -> Iterator[str]:
    """Prefixes to exclude that cover nothing."""
    names = [leaf.name for leaf in tree.leaves]
    known = list(dict.fromkeys(part for name in names for part in _prefixes_of(name)))
    for prefix in exclude:
        if not any(is_under(name, [prefix]) for name in names):
            top = dict.fromkeys(name.partition("/")[0] for name in names)
            yield (
                f"`exclude` takes prefixes of the model's names, and `{prefix}` matches nothing. The model's names "
                f"begin with {quote(top)}.{did_you_mean(prefix, known)}"
            )


def _prefixes_of(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def disputed_weights(claimants: Mapping[str, Sequence[Tensor]]) -> Iterator[str]:
    """Weights of the model that several of the file claim, by name."""
    if claimants:
        listed = _listed(claimants.items(), lambda item: f"`{item[0]}` by {quote(t.name for t in item[1])}")
        yield (
            f"Each weight of the model takes one weight of the file, and {_count(claimants, 'is', 'are')} claimed by "
            f"several: {listed}. Give them different names with `rename`."
        )


def missing_weights(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    """Weights of the model that the file lacks and may not lack."""
    missing = [leaf for leaf in plan.missing if leaf.name not in disputed and not is_under(leaf.name, allowed)]
    if missing:
        listed = _listed(missing, lambda leaf: f"`{leaf.name}`{_nearest_tensor(leaf, plan.unused)}")
        yield (
            f"Each weight of the model must be in the file, and {_count(missing, 'is', 'are')} not: {listed}. "
            f"Exclude {_layers(missing)} to keep fresh weights there, `rename` the file's weights, or name a prefix in "
            f"`allow_missing`.{_rename_hint(missing, plan.unused)}{_lists_hint(plan, missing)}"
        )


def _nearest_tensor(leaf: Leaf, unused: Sequence[Tensor]) -> str:
    layers = {_layer(tensor): tensor for tensor in unused if tensor.position}
    same = layers.get(leaf.layer)
    if same is not None and same.position:
        return f" (`{leaf.layer}` in the file: {same.position[1]} weights)"
    close = nearest(leaf.name, [tensor.name for tensor in unused], limit=1) or nearest(leaf.layer, layers, limit=1)
    return f" (nearest in the file: `{close[0]}`)" if close else ""


def _rename_hint(missing: Sequence[Leaf], unused: Sequence[Tensor]) -> str:
    """Advice for the commonest case: one side has the other as a part of it."""
    ours, theirs = {leaf.layer for leaf in missing}, {_layer(tensor) for tensor in unused}
    for prefix in dict.fromkeys(layer.partition("/")[0] for layer in sorted(ours)):
        if _mostly(f"{prefix}/{layer}" in ours for layer in theirs):
            return f' `rename: {{"^": "{prefix}/"}}` would find most of them.'
    for prefix in dict.fromkeys(layer.partition("/")[0] for layer in sorted(theirs)):
        if _mostly(f"{prefix}/{layer}" in theirs for layer in ours):
            return f' `rename: {{"^{prefix}/": ""}}` would find most of them.'
    return ""


def _mostly(true: Iterable[bool]) -> bool:
    every = list(true)
    return sum(every) > len(every) / 2


def _lists_hint(plan: RestorePlan, missing: Sequence[Leaf]) -> str:
    in_lists = any(part.isdigit() for leaf in missing for part in leaf.layer.split("/"))
    if plan.kind != "tf-object-checkpoint" or not in_lists:
        return ""
    return (
        " TensorFlow's checkpoints leave out what a Keras 3 model holds in lists or dicts: save it with `save_weights`."
    )


def unused_weights(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    """Weights of the file that the model lacks and may not lack; single numbers do not count."""
    allowed = tuple(allowed)
    unused = [t for t in plan.unused if t.shape and t.name not in disputed and not _may_go(t, plan.kind, allowed)]
    if unused:
        missing = [leaf.name for leaf in plan.missing]
        yield (
            f"Each weight of the file must be in the model, and {_count(unused, 'is', 'are')} not: "
            f"{_listed(unused, lambda tensor: f'`{tensor.name}`{_nearest_name(tensor.name, missing)}')}. "
            "`rename` them, or name a prefix in `allow_unused`."
        )


def _may_go(tensor: Tensor, kind: str, allowed: Sequence[str]) -> bool:
    if kind not in ("safetensors", "npz"):
        return is_under(tensor.name, allowed)
    return is_under(tensor.name.replace(".", "/"), [prefix.replace(".", "/") for prefix in allowed])


def _nearest_name(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known, limit=1)
    return f" (nearest in the model: `{close[0]}`)" if close else ""


def shape_conflicts(plan: RestorePlan) -> Iterator[str]:
    """Weights that belong together and do not fit."""
    if plan.shape_conflict:
        yield (
            f"Shapes must agree, and {_count(plan.shape_conflict, 'does', 'do')} not: "
            f"{_listed(plan.shape_conflict, _both_shapes)}. "
            f"Exclude {_layers([found.leaf for found in plan.shape_conflict])} to keep fresh weights there."
        )


def _both_shapes(found: Pair) -> str:
    ours, theirs = shape_of(found.leaf), found.tensor.shape
    types = ("", "") if ours != theirs else (f" {dtype_of(found.leaf)}", f" {found.tensor.dtype}")
    rules = [step for step in found.tensor.steps if step != "rename"]
    where = f"after `{', '.join(rules)}`" if rules else "in the file"
    return (
        f"`{found.leaf.name}` is {ours}{types[0]} in the model and {theirs}{types[1]} {where} (`{found.tensor.name}`)"
    )


def low_coverage(plan: RestorePlan, least: float) -> Iterator[str]:
    """Says so when too small a part of the model would be restored, whatever is allowed to be missing."""
    if plan.coverage < least:
        yield (
            f"At least {least:.1%} of the model's parameters outside `exclude` must come from the file "
            f"(`min_coverage: {least:g}`), and {plan.coverage:.1%} would. The largest that would not: "
            f"{quote(leaf.name for leaf in sorted(plan.missing, key=_size, reverse=True))}."
        )


def _size(leaf: Leaf) -> int:
    return prod(shape_of(leaf))


def nothing_restored(plan: RestorePlan) -> Iterator[str]:
    """Says so when there is nothing to restore."""
    if not plan.restored:
        yield (
            "Restoring must restore something, and no weight of the file would go into the model. "
            f"The file holds {quote(tensor.name for tensor in plan.unused) or 'only weights of excluded layers'}."
        )


def _count(items: Iterable[object], one: str, many: str) -> str:
    number = len(list(items))
    return f"1 {one}" if number == 1 else f"{number} {many}"


def _listed(items: Iterable[_Item], describe: Callable[[_Item], str]) -> str:
    every = list(items)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(describe(item) for item in every[:_SHOWN]) + more


def _layers(leaves: Sequence[Leaf]) -> str:
    return quote(dict.fromkeys(leaf.layer or leaf.name for leaf in leaves))


def _layer(tensor: Tensor) -> str:
    return tensor.name.rpartition("/")[0]
