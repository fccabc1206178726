"""Which weight of a file goes to which weight of a model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from finetune.errors import RestoreError, quote
from finetune.groups.layer_tree import LayerTree
from finetune.pretrained.formats.weight_file import Tensor, WeightFile
from finetune.pretrained.matching_rules import Pair, pair
from finetune.pretrained.problems import (
    dead_prefixes,
    disputed_weights,
    low_coverage,
    missing_weights,
    nothing_restored,
    shape_conflicts,
    unused_weights,
)
from finetune.pretrained.restore_plan import RestorePlan, dtype_of, is_under, shape_of
from finetune.pretrained.transforms import Transform, transformed


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
    places: Mapping[str, Sequence[str]] | None = None,
) -> RestorePlan:
    """Finds the weight of the file for each weight of the model.

    Args:
        tree: The model's weights.
        weight_file: The file's weights.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other.
        transform: What to do to the weights so renamed, one rule after the other.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack. Single numbers (counters, totals of
            metrics) that no weight asks for are always allowed.
        min_coverage: Share of the model's parameters outside of `exclude` that must be restored.
        places: What else the model's weights may be called, from `finetune.pretrained.structure.places`.

    Returns:
        The plan; its `check` raises when something speaks against it.
    """
    exclude = tuple(exclude)
    renamed, dead_rules = _renamed(weight_file.tensors, rename or {})
    tensors = transformed(renamed, transform)
    chosen = {tensor.name for tensor in tensors if tensor.steps}
    pairs, disputed = pair(tree.leaves, tensors, places or {}, chosen)
    claimants = {name: [_as_filed(tensor) for tensor in claims] for name, claims in disputed.items()}
    plan = _sorted_out(tree, weight_file, tensors, pairs, exclude)
    problems = [
        *dead_rules,
        *dead_prefixes(tree, exclude),
        *disputed_weights({name: claims for name, claims in claimants.items() if not is_under(name, exclude)}),
        *missing_weights(plan, allow_missing, set(claimants)),
        *unused_weights(plan, allow_unused, {t.name for claims in claimants.values() for t in claims}),
        *shape_conflicts(plan),
        *low_coverage(plan, min_coverage),
        *nothing_restored(plan),
    ]
    return replace(plan, problems=tuple(problems))


def _renamed(tensors: Sequence[Tensor], rules: Mapping[str, str]) -> tuple[list[Tensor], list[str]]:
    names = [tensor.name for tensor in tensors]
    dead = []
    for pattern, replacement in rules.items():
        try:
            new = [re.sub(pattern, replacement, name) for name in names]
        except re.error as error:
            raise RestoreError(f"`rename` needs regular expressions. `{pattern}: {replacement}`: {error}.") from error
        if not any(re.search(pattern, name) for name in names):
            dead.append(
                f"Each rule of `rename` must match a name in the file, and `{pattern}` matches none. "
                f"The file holds {quote(names)}."
            )
        names = new
    # Only the new name counts: what else the file knew of the weight belongs to the old one.
    changed = [
        replace(t, name=name, aliases=(), places=(), origin=(t.name,), steps=("rename",))
        for t, name in zip(tensors, names, strict=True)
    ]
    return [t if t.name == new.name else new for t, new in zip(tensors, changed, strict=True)], dead


def _as_filed(tensor: Tensor) -> Tensor:
    """Puts back the name that stands in the file."""
    return replace(tensor, name=tensor.in_file)


def _how(found: Pair) -> str:
    """Tells the plainest way in which the two agree, and what was done to the weight before."""
    tensor, leaf = found.tensor, found.leaf
    same_layer = tensor.name.rpartition("/")[0] == leaf.layer
    if tensor.name == leaf.name:
        way = "name" if tensor.name in tensor.origin or not tensor.origin else ""
    elif same_layer and tensor.position and tensor.position[0] == leaf.index:
        way = "layer and index"
    else:
        way = found.how
    return ", ".join(filter(None, [way, *tensor.steps]))


def _sorted_out(
    tree: LayerTree, weight_file: WeightFile, tensors: Sequence[Tensor], pairs: Sequence[Pair], exclude: Sequence[str]
) -> RestorePlan:
    found_leaves, found_tensors = {found.leaf.name for found in pairs}, {id(found.tensor) for found in pairs}
    told = [Pair(found.leaf, _as_filed(found.tensor), _how(found)) for found in pairs]
    kept = [found for found in told if not is_under(found.leaf.name, exclude)]
    excluded = tuple(leaf for leaf in tree.leaves if is_under(leaf.name, exclude))
    left = [tensor for tensor in tensors if id(tensor) not in found_tensors]
    unused = [t for t in left if not any(is_under(name, exclude) for name in (t.name, *t.aliases, *t.origin))]
    return RestorePlan(
        weight_file.path,
        weight_file.kind,
        restored=tuple(found for found in kept if _fits(found)),
        missing=tuple(leaf for leaf in tree.leaves if leaf.name not in found_leaves and leaf not in excluded),
        unused=tuple(map(_as_filed, unused)),
        shape_conflict=tuple(found for found in kept if not _fits(found)),
        excluded=excluded,
    )


def _fits(found: Pair) -> bool:
    whole = [str(dtype).startswith(("int", "uint", "bool")) for dtype in (found.tensor.dtype, dtype_of(found.leaf))]
    return found.tensor.shape == shape_of(found.leaf) and whole[0] == whole[1]
