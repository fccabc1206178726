"""Restores pretrained weights into a model, and proves that the model holds them.

A reader who wants to know *which* weight goes where continues with `matching.py`; *what* a file holds is read in
`formats/readers.py`. This module assigns the values and compares checksums.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.checksum import as_array, checksum
from finetune.errors import RestoreError, counted, printable, quote, reason
from finetune.groups.finite_values import listed, problem_in
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.machine_failures import raise_machine_failure
from finetune.pretrained.averages import with_averages
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.matching import RestorePlan, match
from finetune.pretrained.matching_rules import Pair
from finetune.pretrained.reference_outputs import ATOL, RTOL, compare_outputs, read_reference
from finetune.pretrained.restore_plan import dtype_of
from finetune.pretrained.storage_locations import copy_locations, storage_locations
from finetune.pretrained.transforms import Transform
from finetune.results.formatting import counts_text
from finetune.sequences import one_or_more


@dataclass(frozen=True)
class Restored:
    """A restored weight.

    Attributes:
        name: Its name in the model.
        source: Its name in the file.
        how: How the two were matched, see `finetune.pretrained.matching_rules.Pair`.
        shape: Its shape.
        dtype: Its type in the model.
        cast_from: Its type in the file if that is another one, else empty.
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
        others: How many tensors of each other role the file holds: slots of optimizers, averages, counters, ...
        coverage: Share of the model's parameters outside of `exclude` that was restored, 0 to 1.
        verified: The file of reference outputs that the restored model agrees with; empty without `verify`.
        difference: The largest absolute difference from these outputs; `None` without `verify`.
    """

    path: str
    kind: str
    restored: tuple[Restored, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    shape_conflict: tuple[str, ...]
    excluded: Mapping[str, str]
    others: Mapping[str, int] = field(default_factory=dict)
    coverage: float = 1.0
    verified: str = ""
    difference: float | None = None

    def __repr__(self) -> str:
        return f"RestoreReport({self.summary()})"  # at a prompt; the fields are hundreds of weights

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
        averaged = sum("average" in weight.how.split(", ") for weight in self.restored)
        parts = [
            f"{counted(len(self.restored), 'weight')} restored from {self.path} ({self.kind}), read back bit for bit",
            f"{averaged} of them moving averages" if averaged else "",
            f"{cast} of them cast" if cast else "",
            f"{len(self.excluded)} excluded" if self.excluded else "",
            f"{len(self.missing)} missing ({1 - self.coverage:.1%} of the parameters)" if self.missing else "",
            f"{len(self.unused)} unused" if self.unused else "",
            f"not read: {counts_text(self.others)}" if self.others else "",
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
    averages: bool = False,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    min_coverage: float = 0.0,
    verify: str | Path | None = None,
    verify_rtol: float = RTOL,
    verify_atol: float = ATOL,
    tree: LayerTree | None = None,
) -> RestoreReport:
    """Restores a model's pretrained weights from a file.

    Weights are matched by name first, and by the structure of the model where names do not match. Every weight of the
    model must be in the file and every weight of the file in the model, except for what `exclude`, `allow_missing` and
    `allow_unused` name; otherwise nothing is assigned and one error lists everything that is wrong. Afterwards each
    weight is read back and compared with the file bit for bit.

    ```python
    report = finetune.restore(model, "mnist.weights.h5", exclude=["head"])  # the head keeps its fresh weights
    print(report.summary())
    ```

    Args:
        model_or_tree: A built Keras model or `tf.Module`, or its layer tree. The model itself is better: with the tree
            alone, files can only be matched by name, and not by structure.
        path: A weight file in any format that `finetune.pretrained.formats.readers.read_weights` knows: `.keras`,
            `.weights.h5`, legacy `.h5`, safetensors, npz, a SavedModel, a checkpoint of TF2 or TF1, a folder or archive
            of one of these.
        exclude: Prefixes of the model's names, matched at `/` boundaries: these weights keep their fresh values.
        rename: Regular expressions and their replacements, applied to the file's names one after the other with
            `re.sub`.
        transform: Rules that convert the renamed weights to Keras' layout, applied one after the other.
        averages: Whether to take the moving averages that a file of TF1 or TF2 holds in place of the weights, where a
            weight has an average.
        allow_missing: Prefixes of the model's names that the file may lack.
        allow_unused: Prefixes of the file's names that the model may lack.
        min_coverage: Share of the model's parameters outside of `exclude` that must be restored, 0 to 1, whatever
            `allow_missing` allows.
        verify: An npz file with inputs and the outputs that the restored model must compute, as `finetune reference`
            writes it. If the model computes others, it gets its fresh weights back.
        verify_rtol: Allowed difference of the outputs as a share of the expected value, >= 0.
        verify_atol: Allowed difference of the outputs on top of that, >= 0.
        tree: The layer tree of the model, if it is already known.

    Returns:
        What was restored, with checksums before and after.

    Raises:
        RestoreError: The file cannot be read or does not fit the model, or the outputs differ from those of `verify`.
        GroupError: The model is not built, or is neither a Keras model nor a `tf.Module`.
    """
    is_tree = isinstance(model_or_tree, LayerTree)
    tree = model_or_tree if is_tree else tree or layer_tree(model_or_tree)
    weight_file = read_weights(path)
    plan = match(
        tree,
        with_averages(weight_file) if averages else weight_file,
        exclude=one_or_more(exclude),
        rename=rename,
        transform=transform,
        allow_missing=one_or_more(allow_missing),
        allow_unused=one_or_more(allow_unused),
        min_coverage=min_coverage,
        locations={} if is_tree else storage_locations(model_or_tree, tree),
        copies={} if is_tree else copy_locations(model_or_tree, tree),
    )
    plan.check()  # raises before the first value is read or assigned
    if verify is None:
        return _apply(plan)
    if is_tree:
        raise RestoreError("`verify` needs the model itself to compute its outputs. Received its layer tree.")
    reference = read_reference(verify)  # before anything is assigned: the file may be missing or damaged
    with _fresh_weights_on_error(plan):
        report = _apply(plan)
        difference = compare_outputs(model_or_tree, reference, rtol=verify_rtol, atol=verify_atol)
    return replace(report, verified=reference.path, difference=difference)


@contextmanager
def _fresh_weights_on_error(plan: RestorePlan) -> Iterator[None]:
    """Puts the weights back that the model has now if the block raises."""
    # A copy: `numpy()` of a variable on the CPU may share the variable's memory.
    fresh = [np.copy(as_array(pair.leaf.variable)) for pair in plan.restored]
    try:
        yield
    except BaseException:  # an interrupt, too
        for pair, array in zip(plan.restored, fresh, strict=True):
            pair.leaf.variable.assign(array)
        raise


def _apply(plan: RestorePlan) -> RestoreReport:
    excluded = {leaf.name: checksum(leaf.variable) for leaf in plan.excluded}
    # Every value is read before the first is assigned: a damaged file must not leave a model half restored. The values
    # are read again to assign them, which costs less than holding all of a large file in memory.
    overflowing: dict[str, str] = {}  # what happens to the largest value, by the weight
    wrong: list[str] = []  # weights whose values are no numbers in the file already
    checksums = []
    for pair in plan.restored:
        values = _values(plan, pair, overflowing=overflowing)
        if pair.leaf.name not in overflowing and (problem := problem_in(pair.leaf, values, variances=False)):
            wrong.append(f"`{printable(pair.leaf.name)}`: {problem}")
        checksums.append((checksum(values), checksum(pair.leaf.variable)))
    _require_finite(plan, tuple(overflowing.values()))
    if wrong:
        raise RestoreError(
            f"Weights and statistics of a file must be finite numbers. `{plan.path}` holds others: {listed(wrong)}. "
            "Nothing was restored. Save the file again from a network that works, or name these weights in `exclude`."
        )
    _require_equal_copies(
        plan, {pair.leaf.name: known[0] for pair, known in zip(plan.restored, checksums, strict=True)}
    )
    for pair in plan.restored:
        pair.leaf.variable.assign(_values(plan, pair, on_error=_HALF_RESTORED))
    restored = tuple(
        _restored(pair, in_file, before) for pair, (in_file, before) in zip(plan.restored, checksums, strict=True)
    )
    # Last, when every weight is assigned: a later assignment may have overwritten an earlier weight.
    _prove(plan, restored, excluded)
    return RestoreReport(
        plan.path,
        plan.kind,
        restored,
        missing=tuple(leaf.name for leaf in plan.missing),
        unused=tuple(tensor.name for tensor in plan.unused),
        shape_conflict=tuple(pair.leaf.name for pair in plan.shape_conflict),
        excluded=excluded,
        others=dict(Counter(tensor.role for tensor in plan.others)),
        coverage=plan.coverage,
    )


def _require_finite(plan: RestorePlan, overflowing: Sequence[str]) -> None:
    if overflowing:
        more = f" and {len(overflowing) - 5} more" if len(overflowing) > 5 else ""
        raise RestoreError(
            "The weights of a file must be finite in the model's type. Values that are finite in "
            f"`{plan.path}` become infinite: {', '.join(overflowing[:5])}{more}. Nothing was restored. Build the model "
            "in `float32` or `bfloat16` (`mixed_float16` keeps its weights in `float32`), or scale the values."
        )


def _require_equal_copies(plan: RestorePlan, checksums: Mapping[str, str]) -> None:
    """Raises if the file has two values for a weight that several layers of the model share."""
    shared = [pair for pair in plan.copies if pair.leaf.name in checksums]
    differing = [pair for pair in shared if checksum(_values(plan, pair)) != checksums[pair.leaf.name]]
    if differing:
        listed = quote(f"{pair.leaf.name} ({pair.tensor.name})" for pair in differing)
        raise RestoreError(
            "A weight that several layers share has one value, and a file that holds it several times must agree. In "
            f"`{plan.path}` these differ: {listed}. Nothing was restored. Save the file again from one model."
        )


_NOTHING_RESTORED = "Nothing was restored; copy the file again."
_HALF_RESTORED = (
    "It changed while it was read, and the weights before this one are restored already: build the model again."
)


def _values(
    plan: RestorePlan, pair: Pair, *, on_error: str = _NOTHING_RESTORED, overflowing: dict[str, str] | None = None
) -> np.ndarray:
    """Reads a weight's values and casts them to the model's type; notes in `overflowing` what is no longer finite."""
    try:
        array = pair.tensor.read()
        # The header promised another shape: the file changed in between, or is damaged.
        if array.shape != pair.tensor.shape:
            raise ValueError(f"its shape is {array.shape} instead of {pair.tensor.shape}")
    except Exception as error:  # over damaged files the formats' libraries raise anything
        raise_machine_failure(error, f"Reading `{pair.tensor.name}` from `{plan.path}`")
        raise RestoreError(
            f"A weight file must be complete and undamaged. Reading `{pair.tensor.name}` from `{plan.path}` failed: "
            f"{reason(error) if str(error) else type(error).__name__}. {on_error}"
        ) from error
    # Compared with the weight read back, the checksum is that of the cast values: a cast may round.
    dtype = tf.as_dtype(dtype_of(pair.leaf)).as_numpy_dtype
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported with all other such weights
        cast = array.astype(dtype, copy=False)
    if overflowing is not None and array.dtype != dtype:
        lost = np.isfinite(array) & ~np.isfinite(cast)
        if lost.any():
            largest = float(np.abs(array[lost]).max())
            overflowing[pair.leaf.name] = f"`{pair.leaf.name}` ({largest:.3g} in `{dtype_of(pair.leaf)}`)"
    return cast


def _restored(pair: Pair, in_file: str, before: str) -> Restored:
    dtype = dtype_of(pair.leaf)
    return Restored(
        pair.leaf.name,
        pair.tensor.name,
        pair.how,
        pair.tensor.shape,
        dtype,
        cast_from="" if pair.tensor.dtype == dtype else pair.tensor.dtype,
        before=before,
        file=in_file,
        after=checksum(pair.leaf.variable),
    )


def _prove(plan: RestorePlan, restored: tuple[Restored, ...], excluded: Mapping[str, str]) -> None:
    """Raises if a restored weight differs from the file, or an excluded one from before.

    Both happen when two weights share one storage, as tied embeddings may.
    """
    differing = [weight.name for weight in restored if weight.after != weight.file]
    changed = [leaf.name for leaf in plan.excluded if checksum(leaf.variable) != excluded[leaf.name]]
    if differing or changed:
        received = [
            f"{quote(differing)} differ from the file" if differing else "",
            f"{quote(changed)} changed although they are excluded" if changed else "",
        ]
        raise RestoreError(
            "Restored weights must equal those of the file, and excluded weights must not change. After restoring "
            f"`{plan.path}` {' and '.join(filter(None, received))}. Do these weights share their values with others? "
            "Then exclude or restore all of them."
        )
