"""Proposes rules of `rename` and `transform` for a file whose weights have other names or shapes than the model's.

Rules are tried on the names before they are proposed. The names are those of the commonest sources: a network that is a
part of another, and TF-Slim, where a layer is a scope below that of the network, `VGG/conv1/conv1_1/weights`, and its
normalization a scope of its own below it, `VGG/conv1/conv1_1/BatchNorm/beta`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations, product
from math import prod

from finetune.groups.layer_tree import Leaf
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.pretrained.matching_rules import Pair
from finetune.pretrained.restore_plan import shape_of

_WORDS = {"/weights$": "/kernel", "/biases$": "/bias"}
# Keras names the kernel of a depthwise convolution so alone, or with the words of a separable one.
_SEPARABLE_WORDS = (
    {"/depthwise_weights$": "/kernel"},
    {"/depthwise_weights$": "/depthwise_kernel", "/pointwise_weights$": "/pointwise_kernel"},
)
_STATISTICS = ("moving_mean", "moving_variance")  # by which a normalization layer is known on both sides
_ORDERS = ((1, 0), (2, 1, 0), (2, 3, 1, 0), (2, 3, 4, 1, 0))  # PyTorch's dense layers and convolutions
_ALL_SCOPES = {r"^.*/(?=.*/)": ""}  # the layer's own scope alone
_JOINED = {r"/(?=.*/)": "_"}  # `a/b/kernel` is `a_b/kernel`


def rename_hint(missing: Sequence[Leaf], unused: Sequence[StoredTensor], renamed: Sequence[Pair] = ()) -> str:
    """Returns a sentence with rules of `rename` that match most weights; empty if none are known.

    Args:
        missing: Weights of the model that the file lacks.
        unused: Weights of the file that the model lacks, under the names of the file.
        renamed: Weights that are matched because of the recipe's `rename`: what is proposed stands in its place.
    """
    wanted = {leaf.name for leaf in (*missing, *(pair.leaf for pair in renamed))}
    names = [tensor.name for tensor in (*unused, *(pair.tensor for pair in renamed))]
    best: dict[str, str] = {}
    most = len(renamed)
    for rules in _candidates(wanted, names):
        matched = len(wanted.intersection(_renamed(name, rules) for name in names))
        if matched > most or (matched == most and best and len(rules) < len(best)):
            best, most = rules, matched
    if best and most > min(len(wanted), len(names)) / 2:
        written = ", ".join(f"'{pattern}': '{replacement}'" for pattern, replacement in best.items())
        return f"`rename: {{{written}}}` would match {most} of the model's weights."
    return _part_hint(missing, unused)


def _candidates(wanted: set[str], names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields sets of rules that may give the names of a file those of the model."""
    tops = Counter(name.partition("/")[0] for name in names if name.count("/") > 1)
    first = [{f"^{re.escape(top)}/": ""} for top, _ in tops.most_common(1)]
    norms = [{}, *_normalization_rules(wanted, names)]
    for norm, separable in product(norms, _SEPARABLE_WORDS):
        known = (_WORDS | separable).items()
        words = {pattern: new for pattern, new in known if any(re.search(pattern, name) for name in names)}
        for top, scopes in product([{}, *first], ({}, _JOINED)):
            yield top | norm | words | scopes
        yield norm | words | _ALL_SCOPES


def _normalization_rules(wanted: Iterable[str], names: Iterable[str]) -> list[dict[str, str]]:
    """Returns rules for how the model's normalization layers are named after other layers, the commonest first.

    The file's scope `conv1/BatchNorm` may be `conv1_bn`, which holds the name of the layer, or `bn1`, with its number.
    """
    in_file = {tuple(name.split("/")[-3:-1]) for name in names if _is_statistic(name) and name.count("/") > 1}
    in_model = {name.split("/")[-2] for name in wanted if _is_statistic(name)}
    rules: Counter[tuple[str, str]] = Counter()
    for layer, scope in in_file:
        number = re.fullmatch(r"[^\d]+(\d[\d_]*)", layer)
        for norm in in_model:
            if layer in norm:
                before, _, after = norm.partition(layer)
                # What is before the layer's own name may be the scopes above it: `block_conv1_bn`.
                for start in dict.fromkeys((before, "")):
                    rules[rf"([^/]+)/{re.escape(scope)}/", rf"{start}\1{after}/"] += 1
            elif number and re.fullmatch(rf"[^\d]+{number[1]}", norm):
                rules[rf"[^/\d]+(\d[\d_]*)/{re.escape(scope)}/", norm.removesuffix(number[1]) + r"\1/"] += 1
    return [{pattern: new} for (pattern, new), _ in rules.most_common(4)]


def _is_statistic(name: str) -> bool:
    return name.rpartition("/")[2] in _STATISTICS and "/" in name


def _renamed(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _part_hint(missing: Sequence[Leaf], unused: Sequence[StoredTensor]) -> str:
    """Returns the rule that helps where the model is a part of what was saved, or the reverse, by the names of layers.

    Files of Keras 3 have no names of weights, `conv1/0`.
    """
    model_layers, file_layers = {leaf.layer for leaf in missing}, {t.name.rpartition("/")[0] for t in unused}
    # The file is a part of the model: its `conv1` is `backbone/conv1`.
    for prefix in dict.fromkeys(layer.partition("/")[0] for layer in sorted(model_layers)):
        if _most(f"{prefix}/{layer}" in model_layers for layer in file_layers):
            return f"`rename: {{'^': '{prefix}/'}}` would match most of them."
    # The model is a part of the file: the file's `backbone/conv1` is `conv1`.
    for prefix in dict.fromkeys(layer.partition("/")[0] for layer in sorted(file_layers)):
        if _most(f"{prefix}/{layer}" in file_layers for layer in model_layers):
            return f"`rename: {{'^{prefix}/': ''}}` would match most of them."
    return ""


def _most(conditions: Iterable[bool]) -> bool:
    listed = list(conditions)
    return sum(listed) > len(listed) / 2


def layout_rule(pair: Pair) -> str:
    """Returns the rule of `transform` that gives a weight the model's shape; empty if its size is another.

    A dense layer that was saved as a convolution, (6, 6, 12, 24) for (432, 24), is reshaped; axes in another order are
    transposed.
    """
    in_model, in_file, name = shape_of(pair.leaf), pair.tensor.shape, _name_for_rules(pair)
    if prod(in_model) != prod(in_file) or not name:
        return ""
    if _merges(in_file, in_model) or _merges(in_model, in_file):
        return f"{{names: '{name}', reshape: {list(in_model)}}}"
    orders = [*_ORDERS, *permutations(range(len(in_file)))] if len(in_file) < 6 else _ORDERS
    fitting = (order for order in orders if len(order) == len(in_file) and _ordered(in_file, order) == in_model)
    order = next(fitting, None)
    return f"{{names: '{name}', transpose: {list(order)}}}" if order else ""


def _name_for_rules(pair: Pair) -> str:
    """Returns the pattern of the name that a rule of `transform` sees; empty where it is not known or rules changed it.

    Rules see the names that `rename` made, and the pair has the name of the file.
    """
    if set(pair.tensor.steps) - {"rename", "average"}:
        return ""
    if pair.how.partition(",")[0] in ("name", "rename", "average"):
        return re.escape(pair.leaf.name)
    return "" if "rename" in pair.tensor.steps else re.escape(pair.tensor.name)


def _ordered(shape: tuple[int, ...], order: Iterable[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _merges(shape: Sequence[int], merged: Sequence[int]) -> bool:
    """Whether a shape becomes another by merging neighbouring axes: (6, 6, 12, 24) and (432, 24)."""
    rest = list(shape)
    for size in merged:
        joined = 1
        while rest and joined < size:
            joined *= rest.pop(0)
        if joined != size:
            return False
    return prod(rest) == 1
