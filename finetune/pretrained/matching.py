"""Which weight of a file goes to which weight of a model: a plan, and what speaks against it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from finetune.errors import RestoreError, did_you_mean, nearest, quote
from finetune.groups.layer_tree import LayerTree, Leaf
from finetune.pretrained.pairing import Pair, pair
from finetune.pretrained.weight_file import Tensor, WeightFile

_SHOWN = 5


@dataclass(frozen=True)
class RestorePlan:
    """What restoring a file would do to a model.

    Attributes:
        path: The file.
        kind: Its format.
        restored: Pairs that fit.
        missing: Weights of the model that the file lacks.
        unused: Weights of the file that the model lacks.
        shape_conflict: Pairs that belong together and differ in shape, or of which only one is of whole numbers.
        excluded: Weights of the model that keep their fresh values.
        problems: All that speaks against restoring, one text for each kind.
    """

    path: str
    kind: str
    restored: tuple[Pair, ...]
    missing: tuple[Leaf, ...]
    unused: tuple[Tensor, ...]
    shape_conflict: tuple[Pair, ...]
    excluded: tuple[Leaf, ...]
    problems: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises one error that tells every problem.

        Raises:
            RestoreError: There are problems.
        """
        if self.problems:
            listed = "".join(f"\n- {problem}" for problem in self.problems)
            raise RestoreError(f"`{self.path}` ({self.kind}) does not fit the model; nothing was restored.{listed}")


def match(
    tree: LayerTree,
    weight_file: WeightFile,
    *,
    exclude: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    places: Mapping[str, Sequence[str]] | None = None,
) -> RestorePlan:
    """Finds the weight of the file for each weight of the model.

    Args:
        tree: The model's weights.
        weight_file: The file's weights.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack. Single numbers (counters, totals of
            metrics) that no weight asks for are always allowed.
        places: What else the model's weights may be called, from `finetune.pretrained.places.places`.

    Returns:
        The plan; its `check` raises when something speaks against it.
    """
    exclude = tuple(exclude)
    renamed, dead_rules = _renamed(weight_file.tensors, rename or {})
    origin = {id(new): old for new, old in zip(renamed, weight_file.tensors, strict=True)}
    pairs, disputed = pair(tree.leaves, renamed, places or {}, {new for new, old in origin.items() if new != id(old)})
    plan = _sorted_out(tree, weight_file, [_in_file(p, origin) for p in pairs], exclude)
    claimants = {name: [origin[id(new)] for new in claims] for name, claims in disputed.items()}
    problems = [
        *dead_rules,
        *_dead_prefixes(tree, exclude),
        *_disputed_text({name: claims for name, claims in claimants.items() if not is_under(name, exclude)}),
        *_missing_text(plan, allow_missing, set(claimants)),
        *_unused_text(plan, allow_unused, {t.name for claims in claimants.values() for t in claims}),
        *_conflict_text(plan),
        *_nothing_text(plan),
    ]
    return replace(plan, problems=tuple(problems))


def is_under(name: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes covers the name; `a` covers `a` and `a/b`, not `ab`."""
    return any(name == prefix.rstrip("/") or name.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


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
    changed = [replace(t, name=name, aliases=(), places=()) for t, name in zip(tensors, names, strict=True)]
    return [t if t.name == new.name else new for t, new in zip(tensors, changed, strict=True)], dead


def _in_file(found: Pair, origin: Mapping[int, Tensor]) -> Pair:
    """Puts the file's own tensor back for a renamed one, and tells the plainest way in which the two agree."""
    old, new, leaf = origin[id(found.tensor)], found.tensor, found.leaf
    same_layer = new.name.rpartition("/")[0] == leaf.layer
    if old.name != new.name:
        how = "rename"
    elif new.name == leaf.name:
        how = "name"
    elif same_layer and new.position and new.position[0] == leaf.index:
        how = "layer and index"
    else:
        how = found.how
    return Pair(leaf, old, how)


def _sorted_out(tree: LayerTree, weight_file: WeightFile, pairs: Sequence[Pair], exclude: Sequence[str]) -> RestorePlan:
    kept = [found for found in pairs if not is_under(found.leaf.name, exclude)]
    found_leaves = {found.leaf.name for found in pairs}
    found_tensors = {id(found.tensor) for found in pairs}
    excluded = tuple(leaf for leaf in tree.leaves if is_under(leaf.name, exclude))
    left = [tensor for tensor in weight_file.tensors if id(tensor) not in found_tensors]
    return RestorePlan(
        weight_file.path,
        weight_file.kind,
        restored=tuple(found for found in kept if _fits(found)),
        missing=tuple(leaf for leaf in tree.leaves if leaf.name not in found_leaves and leaf not in excluded),
        unused=tuple(t for t in left if not any(is_under(name, exclude) for name in (t.name, *t.aliases))),
        shape_conflict=tuple(found for found in kept if not _fits(found)),
        excluded=excluded,
    )


def _fits(found: Pair) -> bool:
    whole = [str(dtype).startswith(("int", "uint", "bool")) for dtype in (found.tensor.dtype, _dtype(found.leaf))]
    return found.tensor.shape == _shape(found.leaf) and whole[0] == whole[1]


def _shape(leaf: Leaf) -> tuple[int, ...]:
    return tuple(leaf.variable.shape)


def _dtype(leaf: Leaf) -> str:
    return getattr(leaf.variable.dtype, "name", str(leaf.variable.dtype))


def _dead_prefixes(tree: LayerTree, exclude: Sequence[str]) -> Iterator[str]:
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


def _disputed_text(claimants: Mapping[str, Sequence[Tensor]]) -> Iterator[str]:
    if claimants:
        each = [f"`{name}` by {quote(t.name for t in claims)}" for name, claims in claimants.items()]
        yield (
            f"Each weight of the model takes one weight of the file, and {_count(each, 'is', 'are')} claimed by "
            f"several: {_listed(each)}. Give them different names with `rename`."
        )


def _missing_text(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    missing = [leaf for leaf in plan.missing if leaf.name not in disputed and not is_under(leaf.name, allowed)]
    if missing:
        each = [f"`{leaf.name}`{_nearest_tensor(leaf, plan.unused)}" for leaf in missing]
        yield (
            f"Each weight of the model must be in the file, and {_count(each, 'is', 'are')} not: {_listed(each)}. "
            f"Exclude {_layers(missing)} to keep fresh weights there, `rename` the file's weights, or name a prefix in "
            f"`allow_missing`.{_lists_hint(plan, missing)}"
        )


def _nearest_tensor(leaf: Leaf, unused: Sequence[Tensor]) -> str:
    layers = {tensor.name.rpartition("/")[0]: tensor for tensor in unused if tensor.position}
    same = layers.get(leaf.layer)
    if same is not None and same.position:
        return f" (`{leaf.layer}` in the file: {same.position[1]} weights)"
    close = nearest(leaf.name, [tensor.name for tensor in unused], limit=1) or nearest(leaf.layer, layers, limit=1)
    return f" (nearest in the file: `{close[0]}`)" if close else ""


def _lists_hint(plan: RestorePlan, missing: Sequence[Leaf]) -> str:
    in_lists = any(part.isdigit() for leaf in missing for part in leaf.layer.split("/"))
    if plan.kind != "tf-object-checkpoint" or not in_lists:
        return ""
    return (
        " TensorFlow's checkpoints leave out what a Keras 3 model holds in lists or dicts: save it with `save_weights`."
    )


def _unused_text(plan: RestorePlan, allowed: Iterable[str], disputed: set[str]) -> Iterator[str]:
    unused = [t for t in plan.unused if t.shape and t.name not in disputed and not is_under(t.name, allowed)]
    if unused:
        missing = [leaf.name for leaf in plan.missing]
        near = [nearest(tensor.name, missing, limit=1) for tensor in unused[:_SHOWN]]
        each = [
            f"`{tensor.name}`" + (f" (nearest in the model: `{close[0]}`)" if close else "")
            for tensor, close in zip(unused, near + [[]] * (len(unused) - len(near)), strict=True)
        ]
        yield (
            f"Each weight of the file must be in the model, and {_count(each, 'is', 'are')} not: {_listed(each)}. "
            "`rename` them, or name a prefix in `allow_unused`."
        )


def _conflict_text(plan: RestorePlan) -> Iterator[str]:
    if plan.shape_conflict:
        each = [
            f"`{p.leaf.name}` is {_described(_shape(p.leaf), _dtype(p.leaf))} in the model and "
            f"{_described(p.tensor.shape, p.tensor.dtype)} in the file (`{p.tensor.name}`)"
            for p in plan.shape_conflict
        ]
        yield (
            f"Shapes must agree, and {_count(each, 'does', 'do')} not: {_listed(each)}. "
            f"Exclude {_layers([p.leaf for p in plan.shape_conflict])} to keep fresh weights there."
        )


def _described(shape: tuple[int, ...], dtype: str) -> str:
    return f"{shape}" if dtype.startswith(("float", "bfloat")) else f"{shape} {dtype}"


def _nothing_text(plan: RestorePlan) -> Iterator[str]:
    if not plan.restored:
        yield (
            "Restoring must restore something, and no weight of the file would go into the model. "
            f"The file holds {quote(tensor.name for tensor in plan.unused) or 'only weights of excluded layers'}."
        )


def _count(each: Sequence[str], one: str, many: str) -> str:
    return f"1 {one}" if len(each) == 1 else f"{len(each)} {many}"


def _listed(each: Sequence[str]) -> str:
    more = f" and {len(each) - _SHOWN} more" if len(each) > _SHOWN else ""
    return ", ".join(each[:_SHOWN]) + more


def _layers(leaves: Sequence[Leaf]) -> str:
    return quote(dict.fromkeys(leaf.layer or leaf.name for leaf in leaves))
