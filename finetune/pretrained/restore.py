"""Puts pretrained weights into a model and proves that they are there."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.errors import RestoreError, quote
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.pretrained.checksum import as_array, checksum
from finetune.pretrained.matching import RestorePlan, match
from finetune.pretrained.pairing import Pair
from finetune.pretrained.places import places
from finetune.pretrained.readers import read_weights


@dataclass(frozen=True)
class Restored:
    """One restored weight.

    Attributes:
        name: Its name in the model.
        source: Its name in the file.
        how: How the two were found to belong together, see `finetune.pretrained.pairing.Pair`.
        shape: Its shape.
        dtype: Its type in the model.
        cast_from: The type in the file when it is another one, else empty.
        before: Checksum of the fresh weight.
        file: Checksum of the file's weight, in the model's type.
        after: Checksum of the weight read back from the model; equal to `file`.
    """

    name: str
    source: str
    how: str
    shape: tuple[int, ...]
    dtype: str
    cast_from: str
    before: str
    file: str
    after: str


@dataclass(frozen=True)
class RestoreReport:
    """What was restored and what was not; plain data.

    Attributes:
        path: The file.
        kind: Its format.
        restored: The restored weights, in the model's order.
        missing: Names of weights that the file lacks (and that were allowed to be missing).
        unused: Names in the file that the model lacks (and that were allowed to be unused).
        shape_conflict: Names of weights that differ in shape; always empty after a restore.
        excluded: Checksums of the weights that kept their fresh values, by name.
    """

    path: str
    kind: str
    restored: tuple[Restored, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    shape_conflict: tuple[str, ...]
    excluded: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as dicts, lists, strings and numbers."""
        return asdict(self) | {
            "restored": [asdict(weight) | {"shape": list(weight.shape)} for weight in self.restored],
            "missing": list(self.missing),
            "unused": list(self.unused),
            "shape_conflict": list(self.shape_conflict),
        }

    def summary(self) -> str:
        """Returns the report in one line."""
        cast = sum(bool(weight.cast_from) for weight in self.restored)
        parts = [
            f"{len(self.restored)} weights restored from {self.path} ({self.kind}), read back bit for bit",
            f"{cast} of them cast" if cast else "",
            f"{len(self.excluded)} excluded" if self.excluded else "",
            f"{len(self.missing)} missing" if self.missing else "",
            f"{len(self.unused)} unused" if self.unused else "",
        ]
        return ", ".join(filter(None, parts))


def restore(
    model_or_tree: Any,
    path: Any,
    *,
    exclude: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
) -> RestoreReport:
    """Gives a model its pretrained weights back.

    Nothing is assigned unless everything fits. Afterwards each weight is read back and compared bit for bit.

    Args:
        model_or_tree: A built model or `tf.Module`, or its layer tree. The model itself is better: files that tell
            weights by their place rather than by name need it.
        path: A weight file of any format that `finetune.pretrained.readers.read_weights` knows.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack.

    Returns:
        What was restored, with checksums before and after.

    Raises:
        RestoreError: The file cannot be read or does not fit the model.
    """
    is_tree = isinstance(model_or_tree, LayerTree)
    tree = model_or_tree if is_tree else layer_tree(model_or_tree)
    plan = match(
        tree,
        read_weights(path),
        exclude=exclude,
        rename=rename,
        allow_missing=allow_missing,
        allow_unused=allow_unused,
        places={} if is_tree else places(model_or_tree, tree),
    )
    plan.check()
    return _apply(plan)


def _apply(plan: RestorePlan) -> RestoreReport:
    kept = {leaf.name: checksum(leaf.variable) for leaf in plan.excluded}
    fresh = [checksum(pair.leaf.variable) for pair in plan.restored]
    # All values are fetched before the first is assigned: a damaged file must not leave a model half restored.
    values = [_values(plan, pair) for pair in plan.restored]
    for pair, array in zip(plan.restored, values, strict=True):
        pair.leaf.variable.assign(array)
    restored = tuple(
        _restored(pair, array, before) for pair, array, before in zip(plan.restored, values, fresh, strict=True)
    )
    _prove(plan, restored, kept)
    return RestoreReport(
        plan.path,
        plan.kind,
        restored,
        missing=tuple(leaf.name for leaf in plan.missing),
        unused=tuple(tensor.name for tensor in plan.unused),
        shape_conflict=tuple(pair.leaf.name for pair in plan.shape_conflict),
        excluded=kept,
    )


def _values(plan: RestorePlan, pair: Pair) -> np.ndarray:
    try:
        array = pair.tensor.read()
    except (OSError, KeyError, ValueError, RuntimeError, IndexError, tf.errors.OpError) as error:
        raise RestoreError(
            f"A weight file must be whole. Reading `{pair.tensor.name}` from `{plan.path}` failed: {error}. "
            "Nothing was restored; copy the file again."
        ) from error
    return array.astype(as_array(pair.leaf.variable).dtype, copy=False)


def _restored(pair: Pair, array: np.ndarray, before: str) -> Restored:
    dtype = array.dtype.name
    return Restored(
        pair.leaf.name,
        pair.tensor.name,
        pair.how,
        tuple(array.shape),
        dtype,
        cast_from="" if pair.tensor.dtype == dtype else pair.tensor.dtype,
        before=before,
        file=checksum(array),
        after=checksum(pair.leaf.variable),
    )


def _prove(plan: RestorePlan, restored: tuple[Restored, ...], kept: Mapping[str, str]) -> None:
    wrong = [weight.name for weight in restored if weight.after != weight.file]
    changed = [leaf.name for leaf in plan.excluded if checksum(leaf.variable) != kept[leaf.name]]
    if wrong or changed:
        told = [
            f"differ from the file: {quote(wrong)}" if wrong else "",
            f"changed: {quote(changed)}" if changed else "",
        ]
        raise RestoreError(
            f"Restored weights must equal the file's, and excluded ones must stay. After restoring `{plan.path}` some "
            f"{' and some excluded ones '.join(filter(None, told))}. Do these weights share their values with others?"
        )
