"""Puts pretrained weights into a model and proves that they are there."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.checksum import as_array, checksum
from finetune.errors import RestoreError, quote, reason
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.matching import RestorePlan, match
from finetune.pretrained.outputs import ATOL, RTOL, agreement, read_reference
from finetune.pretrained.pairing import Pair
from finetune.pretrained.places import places
from finetune.pretrained.restore_plan import dtype_of
from finetune.pretrained.transforms import Transform


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
        coverage: Share of the model's parameters outside of `exclude` that was restored, 0 to 1.
        verified: The file with whose outputs those of the restored model agree; empty when none was given.
        difference: The largest absolute difference between them.
    """

    path: str
    kind: str
    restored: tuple[Restored, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    shape_conflict: tuple[str, ...]
    excluded: Mapping[str, str]
    coverage: float = 1.0
    verified: str = ""
    difference: float | None = None

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
            f"{len(self.missing)} missing ({1 - self.coverage:.1%} of the parameters)" if self.missing else "",
            f"{len(self.unused)} unused" if self.unused else "",
            f"outputs agree with {self.verified} (within {self.difference:.2g})" if self.verified else "",
        ]
        return ", ".join(filter(None, parts))


def restore(
    model_or_tree: Any,
    path: Any,
    *,
    exclude: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    transform: Iterable[Transform] = (),
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    min_coverage: float = 0.0,
    verify: str | Path | None = None,
    verify_rtol: float = RTOL,
    verify_atol: float = ATOL,
    tree: LayerTree | None = None,
) -> RestoreReport:
    """Gives a model its pretrained weights back.

    Nothing is assigned unless everything fits. Afterwards each weight is read back and compared bit for bit.

    Args:
        model_or_tree: A built model or `tf.Module`, or its layer tree. The model itself is better: files that tell
            weights by their place rather than by name need it.
        path: A weight file of any format that `finetune.pretrained.formats.readers.read_weights` knows.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other.
        transform: What to do to the weights so renamed, one rule after the other.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack.
        min_coverage: Share of the model's parameters outside of `exclude` that must be restored, 0 to 1, whatever
            `allow_missing` allows.
        verify: An npz file with inputs and the outputs that the restored model must give, as `finetune reference`
            writes it. If it gives others, it gets its fresh weights back.
        verify_rtol: How far the outputs may differ, as a share of the expected value.
        verify_atol: How far they may differ beside that.
        tree: The layer tree of the model, where that is known already.

    Returns:
        What was restored, with checksums before and after.

    Raises:
        RestoreError: The file cannot be read, does not fit the model, or gives it other outputs than `verify` holds.
    """
    is_tree = isinstance(model_or_tree, LayerTree)
    tree = model_or_tree if is_tree else tree or layer_tree(model_or_tree)
    plan = match(
        tree,
        read_weights(path),
        exclude=exclude,
        rename=rename,
        transform=transform,
        allow_missing=allow_missing,
        allow_unused=allow_unused,
        min_coverage=min_coverage,
        places={} if is_tree else places(model_or_tree, tree),
    )
    plan.check()
    if verify is None:
        return _apply(plan)
    if is_tree:
        raise RestoreError("Outputs are compared with `verify` on the model itself. Received its layer tree.")
    reference = read_reference(verify)
    with _put_back_on_error(plan):
        report = _apply(plan)
        difference = agreement(model_or_tree, reference, rtol=verify_rtol, atol=verify_atol)
    return replace(report, verified=reference.path, difference=difference)


@contextmanager
def _put_back_on_error(plan: RestorePlan) -> Iterator[None]:
    fresh = [np.copy(as_array(pair.leaf.variable)) for pair in plan.restored]
    try:
        yield
    except BaseException:
        for pair, array in zip(plan.restored, fresh, strict=True):
            pair.leaf.variable.assign(array)
        raise


def _apply(plan: RestorePlan) -> RestoreReport:
    kept = {leaf.name: checksum(leaf.variable) for leaf in plan.excluded}
    # Every value is read once before the first is assigned: a damaged file must not leave a model half restored.
    # Reading again is cheaper than holding all of a large file in memory.
    filed = [(checksum(_values(plan, pair)), checksum(pair.leaf.variable)) for pair in plan.restored]
    for pair in plan.restored:
        pair.leaf.variable.assign(_values(plan, pair, failing=_HALF))
    restored = tuple(_restored(pair, file, before) for pair, (file, before) in zip(plan.restored, filed, strict=True))
    _prove(plan, restored, kept)
    return RestoreReport(
        plan.path,
        plan.kind,
        restored,
        missing=tuple(leaf.name for leaf in plan.missing),
        unused=tuple(tensor.name for tensor in plan.unused),
        shape_conflict=tuple(pair.leaf.name for pair in plan.shape_conflict),
        excluded=kept,
        coverage=plan.coverage,
    )


_NOTHING = "Nothing was restored; copy the file again."
_HALF = "It changed while it was read, and weights before this one are restored already: build the model anew."


def _values(plan: RestorePlan, pair: Pair, *, failing: str = _NOTHING) -> np.ndarray:
    try:
        array = pair.tensor.read()
        if array.shape != pair.tensor.shape:
            raise ValueError(f"its shape is {array.shape} instead of {pair.tensor.shape}")
    except Exception as error:  # what the formats' libraries raise over a damaged file is not to be foreseen
        raise RestoreError(
            f"A weight file must be whole. Reading `{pair.tensor.name}` from `{plan.path}` failed: "
            f"{reason(error) if str(error) else type(error).__name__}. {failing}"
        ) from error
    return array.astype(tf.as_dtype(dtype_of(pair.leaf)).as_numpy_dtype, copy=False)


def _restored(pair: Pair, file: str, before: str) -> Restored:
    dtype = dtype_of(pair.leaf)
    return Restored(
        pair.leaf.name,
        pair.tensor.name,
        pair.how,
        pair.tensor.shape,
        dtype,
        cast_from="" if pair.tensor.dtype == dtype else pair.tensor.dtype,
        before=before,
        file=file,
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
