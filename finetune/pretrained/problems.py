"""Checks a restore plan: each check yields a message with advice if something is wrong, and nothing otherwise.

One message covers all problems of its kind and shows five of them. Checks are generators so that `matching.match` can
chain them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import TypeVar

import numpy as np

from finetune.checksum import as_array
from finetune.errors import as_list, did_you_mean, nearest, quote
from finetune.groups.layer_tree import LayerTree, Leaf
from finetune.pretrained.formats.tensor_roles import AVERAGE
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.pretrained.matching_rules import Pair, in_keras3
from finetune.pretrained.restore_plan import RestorePlan, dtype_of, is_under, shape_of
from finetune.pretrained.rule_hints import layout_rule, rename_hint

_LARGE = 8  # weights of a network of which some always fit a file of its own
_SHOWN = 5  # names in a message; a foreign file may differ in hundreds
_Item = TypeVar("_Item")


def unmatched_excludes(tree: LayerTree, exclude: Sequence[str], in_file: Sequence[str] = ()) -> Iterator[str]:
    """Yields a message for each prefix of `exclude` that matches no weight of the model.

    Args:
        tree: The model's weights.
        exclude: The prefixes.
        in_file: Names of the file's weights. The scopes that TF-Slim excludes are those of the checkpoint.
    """
    names = [leaf.name for leaf in tree.leaves]
    # `a`, `a/b` and `a/b/kernel` for each weight: what `exclude` could have meant.
    known = list(dict.fromkeys("/".join(name.split("/")[:i]) for name in names for i in range(1, name.count("/") + 2)))
    for prefix in exclude:
        if not any(is_under(name, [prefix]) for name in names):
            top = dict.fromkeys(name.partition("/")[0] for name in names)
            is_scope = any(is_under(name, [prefix]) for name in in_file)
            where, advice = "", did_you_mean(prefix, known)
            if is_scope:
                where = ": the file has it"
                close = nearest(prefix, known, limit=1) or nearest(prefix.rpartition("/")[2], known, limit=1)
                advice = f" Exclude {f'`{close[0]}`' if close else 'the layer of the model'}, and name `{prefix}` in "
                advice += "`allow_unused` if the file's weights still count as unused."
            yield (
                f"`exclude` takes prefixes of the model's names, and `{prefix}` matches nothing{where}. The model's "
                f"names begin with {quote(top)}.{advice if is_scope or ',' not in prefix else as_list(prefix)}"
            )


def another_network(plan: RestorePlan) -> Iterator[str]:
    """Yields a message if hardly any weight of the model is in the file, and hardly any of the file's in the model."""
    in_model = len(plan.restored) + len(plan.missing) + len(plan.shape_conflict)
    others = len([tensor for tensor in plan.unused if tensor.shape]) + len(plan.shape_conflict)
    few = in_model >= _LARGE and len(plan.restored) < in_model / 4
    if few and others > len(plan.restored) and not rename_hint(plan.missing, plan.unused, _by_rename(plan)):
        yield (
            f"The file does not seem to hold the weights of this network: {len(plan.restored)} of the model's "
            f"{in_model} weights fit. Check first that `from` names the right file, and that the model is the one, "
            "with the arguments, that the file was made of."
        )


def _by_rename(plan: RestorePlan) -> list[Pair]:
    return [pair for pair in plan.restored if "rename" in pair.tensor.steps]


def disputed_weights(claimants: Mapping[str, Sequence[StoredTensor]]) -> Iterator[str]:
    """Yields a message if several weights of the file match the same weight of the model.

    Args:
        claimants: The weights of the file, by the name of the model's weight.
    """
    if claimants:
        listed = _listed(claimants.items(), lambda item: f"`{item[0]}` by {quote(t.name for t in item[1])}")
        yield (
            f"Each weight of the model takes one weight of the file, and {_count(claimants, 'is', 'are')} matched by "
            f"several: {listed}. Give them different names with `rename`."
        )


def missing_weights(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    """Yields a message if the file lacks weights of the model that it must have.

    Args:
        plan: The plan to check.
        allowed: Prefixes of the model's names that the file may lack.
        disputed: Names of the model's weights that `disputed_weights` reports.
    """
    # A disputed weight is missing from the plan too, and `rename` solves both.
    missing = [leaf for leaf in plan.missing if leaf.name not in disputed and not is_under(leaf.name, allowed)]
    if missing:
        listed = _listed(missing, lambda leaf: f"`{leaf.name}`{_nearest_tensor(leaf, plan.unused)}")
        rules = rename_hint(missing, plan.unused, _by_rename(plan))
        yield (
            f"Each weight of the model must be in the file, and {_count(missing, 'is', 'are')} not: {listed}. "
            f"{_advice_on_missing(plan, missing, rules)}{_lists_hint(plan, missing)}{_averages_hint(plan, missing)}"
        )


def _advice_on_missing(plan: RestorePlan, missing: Sequence[Leaf], rules: str) -> str:
    if rules:
        return f"{rules} Layers that are new keep fresh weights with `exclude`."
    if parts := _neutral_parts(plan, missing):
        return (
            f"The file has the other weights of these layers, and the fresh values of {quote(parts)} change nothing, "
            f"as if the layers had none: name {quote(leaf.name for leaf in missing)} in `allow_missing`, or build the "
            "layers without (`scale=False`, `use_bias=False`)."
        )
    if len({leaf.layer for leaf in missing}) > _SHOWN:  # no new head, but other names or another network
        return (
            "If the file has them under other names, `rename` them; if it is of another network, take the file of "
            "this one. Layers that are new keep fresh weights with `exclude`, or a prefix in `allow_missing`."
        )
    # Not the whole layer where the file has its other weights.
    restored = {pair.leaf.layer for pair in plan.restored}
    excludes = dict.fromkeys(leaf.name if leaf.layer in restored else leaf.layer or leaf.name for leaf in missing)
    return (
        f"Exclude {quote(excludes)} to keep fresh weights there, `rename` the file's weights, or name a prefix in "
        "`allow_missing`."
    )


def _nearest_tensor(leaf: Leaf, unused: Sequence[StoredTensor]) -> str:
    numbered = {_layer(tensor): tensor for tensor in unused if tensor.position}
    same_layer = numbered.get(leaf.layer)
    if same_layer is not None and same_layer.position:  # the layer is there, but with another number of weights
        return f" (`{leaf.layer}` in the file: {same_layer.position[1]} weights)"
    close = nearest(leaf.name, [tensor.name for tensor in unused], limit=1) or nearest(leaf.layer, numbered, limit=1)
    return f" (nearest in the file: `{close[0]}`)" if close else ""


def _neutral_parts(plan: RestorePlan, missing: Sequence[Leaf]) -> list[str]:
    """Returns the kinds of the missing weights if all are scales of 1 or biases of 0 in layers that the file has."""
    restored = {pair.leaf.layer for pair in plan.restored}
    kinds = dict.fromkeys(leaf.name.rpartition("/")[2] for leaf in missing)
    if any(leaf.layer not in restored for leaf in missing) or not {"gamma", "beta", "bias"}.issuperset(kinds):
        return []
    neutral = (np.all(as_array(leaf.variable) == leaf.name.endswith("/gamma")) for leaf in missing)
    return list(kinds) if all(neutral) else []


def _lists_hint(plan: RestorePlan, missing: Sequence[Leaf]) -> str:
    # A list gives its members numbers for names, `blocks/0/kernel`, and Keras 3 hides it from `tf.train.Checkpoint`.
    in_lists = any(part.isdigit() for leaf in missing for part in leaf.layer.split("/"))
    if plan.kind != "tf-object-checkpoint" or not in_lists:
        return ""
    return (
        " TensorFlow's checkpoints leave out what a Keras 3 model holds in lists or dicts: save it with `save_weights`."
    )


def _averages_hint(plan: RestorePlan, missing: Sequence[Leaf]) -> str:
    averaged = {tensor.of for tensor in plan.others if tensor.role == AVERAGE}
    weights = (*plan.unused, *(pair.tensor for pair in (*plan.restored, *plan.shape_conflict)))
    if not averaged or any(tensor.name in averaged for tensor in weights):  # averages of weights that are there, too
        return ""
    count = sum(leaf.name in averaged for leaf in missing) or len(averaged)
    return (
        f" The file holds moving averages of {_count(range(count), 'weight', 'weights')}: `averages: true` takes them."
    )


def unused_weights(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    """Yields a message if the file has weights that the model lacks. Scalars do not count.

    Args:
        plan: The plan to check.
        allowed: Prefixes of the file's names that the model may lack. In files of flat names `.` counts like `/`.
        disputed: Names of the file's weights that `disputed_weights` reports.
    """
    allowed = tuple(allowed)
    # Scalars are counters or totals of metrics more often than weights, and no great loss.
    unused = [t for t in plan.unused if t.shape and t.name not in disputed and not _is_allowed(t, plan.kind, allowed)]
    if unused:
        missing = [leaf.name for leaf in plan.missing]

        def described(tensor: StoredTensor) -> str:
            close = nearest(tensor.name, missing, limit=1)
            return f"`{tensor.name}`{f' (nearest in the model: `{close[0]}`)' if close else ''}"

        yield (
            f"Each weight of the file must be in the model, and {_count(unused, 'is', 'are')} not: "
            f"{_listed(unused, described)}. `rename` them, or name a prefix in `allow_unused`."
        )


def _is_allowed(tensor: StoredTensor, kind: str, allowed: Sequence[str]) -> bool:
    if kind not in ("safetensors", "npz"):  # elsewhere a dot is a part of a layer's name
        # Names of a network of `keras.applications` may be those of Keras 3 where the file has those of Keras 2.
        layer, _, last = tensor.name.rpartition("/")
        return is_under(tensor.name, allowed) or is_under(f"{in_keras3(layer)}/{last}", allowed)
    return is_under(tensor.name.replace(".", "/"), [prefix.replace(".", "/") for prefix in allowed])


def shape_conflicts(plan: RestorePlan) -> Iterator[str]:
    """Yields a message if weights that belong together differ in shape, and another if in the kind of number."""
    by_shape = [pair for pair in plan.shape_conflict if shape_of(pair.leaf) != pair.tensor.shape]
    by_type = [pair for pair in plan.shape_conflict if shape_of(pair.leaf) == pair.tensor.shape]
    if by_shape:
        others = [pair.leaf for pair in by_shape if not layout_rule(pair)]
        rules = [rule for rule in map(layout_rule, by_shape) if rule]
        shown = ", ".join(rules[:_SHOWN])
        layouts = (
            f" Weights of the same size in another layout are converted by `transform: [{shown}]`{_more(rules)}; "
            "`verify` proves the order of the axes."
        )
        yield (
            f"Shapes must agree, and {_count(by_shape, 'does', 'do')} not: {_listed(by_shape, _both_shapes)}."
            f"{layouts if rules else ''}{f' Exclude {_layers(others)} to keep fresh weights there.' if others else ''}"
        )
    if by_type:
        yield (
            "Integers, floats, complex numbers, text and dates are not taken for each other: quantized weights need "
            f"their scales, and a cast would lose parts. {_count(by_type, 'weight differs', 'weights differ')}: "
            f"{_listed(by_type, _both_shapes)}. If the numbers are right as they are, save the file again in the "
            f"model's type (`array.astype('{dtype_of(by_type[0].leaf)}')`), or exclude "
            f"{_layers([pair.leaf for pair in by_type])} to keep fresh weights there."
        )


def _both_shapes(pair: Pair) -> str:
    in_model, in_file = shape_of(pair.leaf), pair.tensor.shape
    # Types are shown only where they make the difference.
    types = ("", "") if in_model != in_file else (f" {dtype_of(pair.leaf)}", f" {pair.tensor.dtype}")
    rules = [step for step in pair.tensor.steps if step != "rename"]
    where = f"after `{', '.join(rules)}`" if rules else "in the file"
    return (
        f"`{pair.leaf.name}` is {in_model}{types[0]} in the model and {in_file}{types[1]} {where} "
        f"(`{pair.tensor.name}`)"
    )


def low_coverage(plan: RestorePlan, least: float) -> Iterator[str]:
    """Yields a message if a smaller share of the parameters than `least` (0 to 1) would be restored."""
    if plan.coverage < least:  # what `allow_missing` allows counts too: it is about how much, not about which
        largest = sorted(plan.missing, key=lambda leaf: prod(shape_of(leaf)), reverse=True)
        yield (
            f"At least {least:.1%} of the model's parameters outside `exclude` must come from the file "
            f"(`min_coverage: {least:g}`), and {plan.coverage:.1%} would. The largest that would not: "
            f"{quote(leaf.name for leaf in largest)}."
        )


def nothing_restored(plan: RestorePlan) -> Iterator[str]:
    """Yields a message if no weight would be restored."""
    if plan.excluded and not (plan.restored or plan.missing or plan.shape_conflict):
        yield (
            "At least one weight must be restored, and `exclude` names all layers of the model. Name only those that "
            "are to keep fresh weights, or remove `restore`."
        )
    elif not plan.restored:
        held = quote(tensor.name for tensor in (plan.unused or plan.others)) or "only weights of excluded layers"
        yield (f"At least one weight must be restored, and no weight of the file would be. The file holds {held}.")


def _count(items: Iterable[object], singular: str, plural: str) -> str:
    number = len(list(items))
    return f"1 {singular}" if number == 1 else f"{number} {plural}"


def _listed(items: Iterable[_Item], describe: Callable[[_Item], str]) -> str:
    listed = list(items)
    return ", ".join(describe(item) for item in listed[:_SHOWN]) + _more(listed)


def _more(items: Collection[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def _layers(leaves: Sequence[Leaf]) -> str:
    return quote(dict.fromkeys(leaf.layer or leaf.name for leaf in leaves))


def _layer(tensor: StoredTensor) -> str:
    return tensor.name.rpartition("/")[0]
