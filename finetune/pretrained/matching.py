"""Plans a restore: applies the user's rules to the file's weights and matches them with the model's.

The steps, in their order: `rename`, then `transform`, then the matching rules (`matching_rules.py`), then sorting out
what is restored, missing, unused, excluded or in conflict, then collecting what is wrong (`problems.py`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from finetune.errors import RestoreError, quote
from finetune.groups.layer_tree import LayerTree
from finetune.pretrained.formats.tensor_roles import (
    AVERAGE,
    OTHER,
    SLOT,
    WEIGHT,
    is_named_as_average,
    is_named_as_slot,
)
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching_rules import Pair, pair_weights
from finetune.pretrained.problems import (
    another_network,
    disputed_weights,
    low_coverage,
    missing_weights,
    nothing_restored,
    shape_conflicts,
    unmatched_excludes,
    unused_weights,
)
from finetune.pretrained.restore_plan import RestorePlan, dtype_of, is_under, shape_of
from finetune.pretrained.transforms import Transform, apply_transforms


def match(
    tree: LayerTree,
    weight_file: WeightFile,
    *,
    exclude: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    transform: Iterable[Transform] = (),
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    min_coverage: float = 0.0,
    locations: Mapping[str, Sequence[str]] | None = None,
    copies: Mapping[str, str] | None = None,
) -> RestorePlan:
    """Matches the weights of a file with those of a model.

    Args:
        tree: The model's weights.
        weight_file: The file's weights.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other.
        transform: Rules that are applied to the renamed weights, one after the other.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack. Scalars that match no weight (counters,
            totals of metrics) are always allowed.
        min_coverage: Share of the model's parameters outside of `exclude` that must be restored, 0 to 1.
        locations: Locations of the model's weights, from `finetune.pretrained.storage_locations.storage_locations`.
        copies: Where the file may hold a weight once more, from
            `finetune.pretrained.storage_locations.copy_locations`.

    Returns:
        The plan. Its `check` raises if anything is wrong with it.

    Raises:
        RestoreError: A rule of `rename` or `transform` is not valid or does not fit the weights.
    """
    exclude = tuple(exclude)  # read several times below, and a generator can be read once
    renamed, unmatched_rules = _renamed([*weight_file.tensors, *weight_file.others], rename or {})
    candidates, transform = _candidates(renamed, tree), tuple(transform)
    try:
        tensors = apply_transforms(candidates, transform)
    except RestoreError as error:  # the file may be at fault, rather than the rule
        raise RestoreError(f"{_of_another_network(candidates, tree, transform)}{error}") from error
    # A name that a rule made was made for this model: it counts more than a name that happens to be in the file.
    chosen_names = {tensor.name for tensor in tensors if set(tensor.steps) - {"average"}}
    pairs, disputed = pair_weights(tree.leaves, tensors, locations or {}, chosen_names)
    # From here on tensors have the names of the file again, which is what the messages show.
    claimants = {name: [_named_as_in_file(tensor) for tensor in claims] for name, claims in disputed.items()}
    plan = _with_copies(_sorted_out(tree, weight_file, tensors, pairs, exclude), tree, copies or {})
    # All kinds of problems are collected: a user should not have to fix and try once for each. Rules that match nothing
    # come first, since they often explain what is missing and unused below.
    problems = [
        *another_network(plan),
        *unmatched_rules,
        *unmatched_excludes(tree, exclude, [tensor.name for tensor in weight_file.tensors]),
        *disputed_weights({name: claims for name, claims in claimants.items() if not is_under(name, exclude)}),
        *missing_weights(plan, allow_missing, set(claimants)),
        *unused_weights(plan, allow_unused, {t.name for claims in claimants.values() for t in claims}),
        *shape_conflicts(plan),
        *low_coverage(plan, min_coverage),
        *nothing_restored(plan),
    ]
    return replace(plan, problems=tuple(problems))


def _of_another_network(tensors: Sequence[StoredTensor], tree: LayerTree, transform: Sequence[Transform]) -> str:
    """Returns a sentence where hardly any name of the file is one of the model, before rules are at fault."""
    if any(rule.to for rule in transform):  # names that rules make are not known yet
        return ""
    names = {name for tensor in tensors for name in (tensor.name, tensor.name.replace(".", "/"), *tensor.aliases)}
    known = sum(leaf.name in names for leaf in tree.leaves)
    if len(tree.leaves) < 8 or known >= len(tree.leaves) / 4:
        return ""
    return (
        f"The file does not seem to hold the weights of this network: it has {known} of the model's {len(tree.leaves)} "
        "names. Check first that `from` names the right file. "
    )


def _renamed(tensors: Sequence[StoredTensor], rules: Mapping[str, str]) -> tuple[Sequence[StoredTensor], Sequence[str]]:
    """Returns the tensors with their new names, and a problem for each rule that matches no name."""
    names = [tensor.name for tensor in tensors]
    problems = []
    for pattern, replacement in rules.items():
        try:
            # Also reads the replacement: `\2` without a second group is an error even if nothing matches.
            new = [re.sub(pattern, replacement, name) for name in names]
        except re.error as error:
            raise RestoreError(
                f"`rename` needs regular expressions and replacements. `{pattern}: {replacement}`: {error}."
            ) from error
        if not any(re.search(pattern, name) for name in names):
            problems.append(
                f"Each rule of `rename` must match a name in the file, and `{pattern}` matches none. "
                f"The file holds {quote(names)}."
            )
        names = new  # the next rule sees the new names
    # A new name replaces all that the file knows of the weight: its aliases and locations belong to the old name.
    renamed = [
        tensor
        if tensor.name == name
        else replace(
            tensor, name=name, aliases=(), locations=(), origin=(tensor.in_file,), steps=(*tensor.steps, "rename")
        )
        for tensor, name in zip(tensors, names, strict=True)
    ]
    return renamed, problems


def _candidates(tensors: Sequence[StoredTensor], tree: LayerTree) -> list[StoredTensor]:
    """Returns the tensors that may be weights of the model: the file's weights, and what the user or the model names.

    What a reader took for a slot, an average or a counter is a weight if the model has a weight of that very name, or
    if `rename` gave it the name of a weight: `{"/ExponentialMovingAverage$": ""}`. Renamed, it takes the place of the
    file's own weight of this name.
    """

    def is_asked_for(tensor: StoredTensor) -> bool:
        if tensor.name in tree.by_name or tensor.name.replace(".", "/") in tree.by_name:
            return True
        # Rules such as `{"^": "net/"}` rename slots along with their weights; they stay slots.
        is_renamed = "rename" in tensor.steps and _last(tensor.name) != _last(tensor.origin[0])
        is_state = not tensor.shape or is_named_as_average(tensor.name) or is_named_as_slot(tensor.name)
        return is_renamed and not is_state and tensor.role in (SLOT, AVERAGE, OTHER)

    others = [tensor for tensor in tensors if tensor.role != WEIGHT and is_asked_for(tensor)]
    replaced = {tensor.name for tensor in others if "rename" in tensor.steps}
    return [*(t for t in tensors if t.role == WEIGHT and t.name not in replaced), *others]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _named_as_in_file(tensor: StoredTensor) -> StoredTensor:
    """Takes back a new name: messages and reports show the names that users find in their files."""
    return replace(tensor, name=tensor.in_file)


def _how(pair: Pair) -> str:
    """Returns the plainest description of how the two were matched, and what was done to the weight before.

    A strong rule may have matched what agrees in a simpler way, too: a pair by structure with the same name is a pair
    by name.
    """
    tensor, leaf = pair.tensor, pair.leaf
    is_same_layer = tensor.name.rpartition("/")[0] == leaf.layer
    if tensor.name == leaf.name:
        way = "name" if tensor.name in tensor.origin or not tensor.origin else ""  # else `rename` says it all
    # Files of Keras 3 know no names of weights: `head/0` for `head/kernel`.
    elif is_same_layer and tensor.position and tensor.position[0] == leaf.index:
        way = "layer and index"
    else:
        way = pair.how
    return ", ".join(filter(None, [way, *tensor.steps]))


def _sorted_out(
    tree: LayerTree,
    weight_file: WeightFile,
    tensors: Sequence[StoredTensor],
    pairs: Sequence[Pair],
    exclude: Sequence[str],
) -> RestorePlan:
    """Returns the plan without its problems."""
    paired_leaves, paired_tensors = {pair.leaf.name for pair in pairs}, {id(pair.tensor) for pair in pairs}
    # Excluded weights are matched like the others, so that the file's weights for them do not count as unused.
    described = [Pair(pair.leaf, _named_as_in_file(pair.tensor), _how(pair)) for pair in pairs]
    kept = [pair for pair in described if not is_under(pair.leaf.name, exclude)]
    excluded = tuple(leaf for leaf in tree.leaves if is_under(leaf.name, exclude))
    left = [tensor for tensor in tensors if id(tensor) not in paired_tensors]
    # What the file has for an excluded layer is not unused, under whichever name.
    left = [tensor for tensor in left if tensor.role == WEIGHT]
    unused = [t for t in left if not any(is_under(name, exclude) for name in (t.name, *t.aliases, *t.origin))]
    taken = {name for pair in pairs for name in pair.tensor.origin or (pair.tensor.name,)}
    return RestorePlan(
        weight_file.path,
        weight_file.kind,
        restored=tuple(pair for pair in kept if _fits(pair)),
        missing=tuple(leaf for leaf in tree.leaves if leaf.name not in paired_leaves and leaf not in excluded),
        unused=tuple(map(_named_as_in_file, unused)),
        shape_conflict=tuple(pair for pair in kept if not _fits(pair)),
        excluded=excluded,
        others=tuple(tensor for tensor in weight_file.others if tensor.name not in taken),
    )


def _with_copies(plan: RestorePlan, tree: LayerTree, copies: Mapping[str, str]) -> RestorePlan:
    """Takes unused tensors that are copies of another for what they are."""
    leaves = {t.name: tree.by_name[copies[place]] for t in plan.unused for place in t.locations if place in copies}
    pairs = [Pair(leaves[tensor.name], tensor, "copy") for tensor in plan.unused if tensor.name in leaves]
    pairs = [pair for pair in pairs if _fits(pair)]
    unused = tuple(tensor for tensor in plan.unused if all(tensor is not pair.tensor for pair in pairs))
    return replace(plan, unused=unused, copies=tuple(pairs))


def _fits(pair: Pair) -> bool:
    """Whether the shapes are equal, and both are integers, floats or complex: a cast between these loses values."""
    return pair.tensor.shape == shape_of(pair.leaf) and _kind(pair.tensor.dtype) == _kind(str(dtype_of(pair.leaf)))


def _kind(dtype: str) -> str:
    kinds = {
        "integer": ("int", "uint", "bool"),
        "complex": ("complex",),
        "text": ("str", "bytes", "object", "<U", "|S", "|O"),
        "date": ("datetime", "timedelta", "<M", "<m"),
    }
    return next((kind for kind, begins in kinds.items() if dtype.startswith(begins)), "float")
