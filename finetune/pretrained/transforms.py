"""Rules that convert weights of another library's layout to Keras': transpose, reshape, split, concatenate, add.

PyTorch stores the kernel of a dense layer as (out, in), Keras as (in, out); CuDNN joins the gates of an LSTM in one
matrix; other libraries split what Keras keeps together. A rule only describes the change: it computes names and shapes
at once, so that everything is checked before any value is read, and reads the values when the weight is assigned.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import ml_dtypes  # noqa: F401 - makes NumPy know `bfloat16` by name
import numpy as np

from finetune.errors import RestoreError, quote
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.sequences import one_or_more

_Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Transform:
    r"""A rule that changes every weight whose whole name matches a pattern, in exactly one way.

    Give one of `transpose`, `reshape`, `split`, `concatenate` and `add`, or none of them to only rename. Patterns are
    matched against the names that `rename` made.

    Examples:
        >>> transpose_kernels = Transform((r".*/kernel",), transpose=(1, 0))  # of dense layers of PyTorch
        >>> split_qkv = Transform((r"(.*)/qkv",), (r"\1/q", r"\1/k", r"\1/v"), split=3)
        >>> add_biases = Transform((r"(.*)/bias_ih", r"(.*)/bias_hh"), (r"\1/bias",), add=True)

    Attributes:
        names: Regular expressions over whole names. Only `concatenate` and `add` take several, in their order.
        to: New names, which may refer to groups of the pattern (`\1`): as many as parts for `split`, else a single
            name. Empty keeps the name.
        transpose: The axes in their new order: `(1, 0)` for a matrix.
        reshape: The new shape; one size may be -1, which is computed.
        order: In which order `reshape` reads and writes: `C`, the last axis fastest (NumPy, PyTorch), or `F`.
        split: The number of equal parts, or the length of each part.
        concatenate: Whether the weights, one of each pattern, are joined along `axis`.
        add: Whether the weights, one of each pattern, are added.
        axis: The axis of `split` and `concatenate`; negative counts from the last.
    """

    names: tuple[str, ...]
    to: tuple[str, ...] = ()
    transpose: tuple[int, ...] | None = None
    reshape: tuple[int, ...] | None = None
    order: str = "C"
    split: int | tuple[int, ...] | None = None
    concatenate: bool = False
    add: bool = False
    axis: int = 0

    def __post_init__(self) -> None:
        for name in ("names", "to"):
            object.__setattr__(self, name, one_or_more(getattr(self, name)))
        for name in ("transpose", "reshape", "split"):  # lists, too, as YAML has them: shapes are compared as tuples
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    def __str__(self) -> str:
        """Returns what the rule does, for reports and messages: `transpose [1, 0]`, `split 3 along axis 0`."""
        along = f" along axis {self.axis}"
        in_order = f" in order {self.order}" if self.order != "C" else ""
        operations = {
            "transpose": self.transpose is not None and f"transpose {list(self.transpose)}",
            "reshape": self.reshape is not None and f"reshape {list(self.reshape)}{in_order}",
            "split": self.split and f"split {list(self.split) if type(self.split) is tuple else self.split}{along}",
            "concatenate": self.concatenate and f"concatenate{along}",
            "add": self.add and "add",
        }
        return next((text for text in operations.values() if text), "rename")


def apply_transforms(tensors: Sequence[StoredTensor], rules: Iterable[Transform]) -> list[StoredTensor]:
    """Applies rules one after the other. No value is read yet.

    Args:
        tensors: The weights of a file, under the names that `rename` gave them.
        rules: The rules, in their order. Each sees the names that the rules before it made.

    Returns:
        The new weights. Each knows its `origin` in the file and the `steps` that were applied to it.

    Raises:
        RestoreError: A rule matches nothing, does not fit a weight that it matches, or is not a regular expression.
    """
    tensors = list(tensors)
    for rule in rules:
        joins = rule.concatenate or rule.add
        tensors = list(_apply_to_groups(tensors, rule) if joins else _apply_to_each(tensors, rule))
    return tensors


# transpose, reshape, split, rename: of one weight


def _apply_to_each(tensors: Sequence[StoredTensor], rule: Transform) -> Iterator[StoredTensor]:
    pattern = _compiled(rule.names[0])
    # Whole names: a pattern `kernel` that also matched `recurrent_kernel` would transpose both without a word.
    matches = [pattern.fullmatch(tensor.name) for tensor in tensors]
    matched = [tensor for tensor, hit in zip(tensors, matches, strict=True) if hit]
    _require_match(rule, rule.names[0], matched, tensors)
    unfit = [tensor for tensor in matched if not _fits(tensor.shape, rule)]
    if unfit:
        raise RestoreError(
            f"`transform` must fit each weight that its pattern matches. `{rule}` does not fit "
            f"{quote([f'{tensor.name} {tensor.shape}' for tensor in unfit])}. Narrow the pattern "
            f"`{'`, `'.join(rule.names)}`, or fix the rule."
        )
    for tensor, hit in zip(tensors, matches, strict=True):
        yield from _applied(tensor, rule, hit) if hit else [tensor]


def _require_match(
    rule: Transform, pattern: str, matched: Sequence[StoredTensor], tensors: Sequence[StoredTensor]
) -> None:
    if not matched:
        raise RestoreError(
            f"Each rule of `transform` must match whole names of weights, and `{pattern}` ({rule}) matches "
            f"none. The names after the earlier rules are {quote(tensor.name for tensor in tensors)}."
        )


def _fits(shape: tuple[int, ...], rule: Transform) -> bool:
    if rule.transpose is not None:
        return sorted(rule.transpose) == list(range(len(shape)))
    if rule.reshape is not None:
        return _new_shape(shape, rule.reshape) is not None
    if rule.split is not None:
        return -len(shape) <= rule.axis < len(shape) and _parts(shape[rule.axis], rule.split) is not None
    return True


def _new_shape(shape: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the new shape with its -1 computed; `None` if it has another number of values."""
    known = prod(size for size in new if size != -1)  # 0 if a size is 0: then -1 could be anything
    if -1 in new and known and prod(shape) % known == 0:
        return tuple(prod(shape) // known if size == -1 else size for size in new)
    return new if prod(new) == prod(shape) and -1 not in new else None


def _parts(length: int, split: int | tuple[int, ...]) -> list[slice] | None:
    """Returns the slice of each part along the axis; `None` if the parts do not add up to its length."""
    sizes = split if isinstance(split, tuple) else (length // split,) * split  # 7 in 2 parts gives 3 + 3: refused
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(*ends[i : i + 2]) for i in range(len(sizes))] if ends[-1] == length else None


def _applied(tensor: StoredTensor, rule: Transform, hit: re.Match[str]) -> Iterator[StoredTensor]:
    """Yields what the rule makes of a weight: its parts for `split`, else one weight."""
    names = [_expanded(hit, name) for name in rule.to] or [tensor.name]
    if rule.transpose is not None:
        shape = tuple(tensor.shape[axis] for axis in rule.transpose)
        yield _derived(names[0], shape, partial(_transpose, tensor.read, rule.transpose), [tensor], str(rule))
    elif rule.reshape is not None:
        shape = _new_shape(tensor.shape, rule.reshape) or ()
        yield _derived(names[0], shape, partial(_reshape, tensor.read, shape, rule.order), [tensor], str(rule))
    elif rule.split is not None:
        parts = _parts(tensor.shape[rule.axis], rule.split) or []
        for i, (name, part) in enumerate(zip(names, parts, strict=True), start=1):
            shape = _with_length(tensor.shape, rule.axis, part.stop - part.start)
            step = f"{rule}, part {i}"
            yield _derived(name, shape, partial(_slice, tensor.read, part, rule.axis), [tensor], step)
    else:
        yield _derived(names[0], tensor.shape, tensor.read, [tensor], str(rule))


# concatenate, add: of one weight for each pattern


def _apply_to_groups(tensors: Sequence[StoredTensor], rule: Transform) -> Iterator[StoredTensor]:
    """Yields the weights in their order, each group once, at the place of its first member."""
    groups = _groups(tensors, rule)
    unfit = [group for group in groups.values() if _joined_shape([tensor.shape for tensor in group], rule) is None]
    if unfit:
        listed = quote([" and ".join(f"{tensor.name} {tensor.shape}" for tensor in group) for group in unfit])
        raise RestoreError(f"`transform` joins weights whose shapes fit. `{rule}` does not fit {listed}. Fix the rule.")
    joined = {id(group[0]): _joined(name, group, rule) for name, group in groups.items()}
    members = {id(tensor) for group in groups.values() for tensor in group}
    for tensor in tensors:
        if id(tensor) in joined:
            yield joined[id(tensor)]
        elif id(tensor) not in members:
            yield tensor


def _groups(tensors: Sequence[StoredTensor], rule: Transform) -> dict[str, list[StoredTensor]]:
    """Returns the weights that are joined, in the order of the patterns, by the new name that they share."""
    by_pattern: list[dict[str, list[StoredTensor]]] = []
    for text in rule.names:
        pattern, by_name = _compiled(text), {}
        for tensor in tensors:
            if hit := pattern.fullmatch(tensor.name):
                by_name.setdefault(_expanded(hit, rule.to[0]), []).append(tensor)
        _require_match(rule, text, [tensor for matched in by_name.values() for tensor in matched], tensors)
        by_pattern.append(by_name)
    names = list(dict.fromkeys(name for by_name in by_pattern for name in by_name))
    # Each new name needs exactly one weight of each pattern: `\1/bias` one `bias_ih` and one `bias_hh`.
    uneven = [name for name in names if any(len(by_name.get(name, [])) != 1 for by_name in by_pattern)]
    if uneven:
        raise RestoreError(
            f"`transform` joins one weight of each pattern. `{rule}` of `{'`, `'.join(rule.names)}` matches no "
            f"weight, or several, for {quote(uneven)}. Put what differs between the weights into groups of the "
            "patterns, "
            "and the groups into the new name."
        )
    return {name: [by_name[name][0] for by_name in by_pattern] for name in names}


def _joined_shape(shapes: Sequence[tuple[int, ...]], rule: Transform) -> tuple[int, ...] | None:
    """Returns the shape of the sum or concatenation; `None` if the shapes do not fit together."""
    if rule.add:
        return shapes[0] if len(set(shapes)) == 1 else None
    if len({len(shape) for shape in shapes}) > 1 or not -len(shapes[0]) <= rule.axis < len(shapes[0]):
        return None
    total = sum(shape[rule.axis] for shape in shapes)
    # Shapes fit if they are equal once the joined axis has its new length.
    joined = {_with_length(shape, rule.axis, total) for shape in shapes}  # several if another axis differs
    return joined.pop() if len(joined) == 1 else None


def _joined(name: str, group: Sequence[StoredTensor], rule: Transform) -> StoredTensor:
    reads = [tensor.read for tensor in group]
    read = partial(_add, reads) if rule.add else partial(_concatenate, reads, rule.axis)
    shape = _joined_shape([tensor.shape for tensor in group], rule) or ()
    return _derived(name, shape, read, group, str(rule))


# Both


def _derived(
    name: str, shape: tuple[int, ...], read: _Read, sources: Sequence[StoredTensor], step: str
) -> StoredTensor:
    """Returns a weight made from others.

    Args:
        name: Its name. If it is that of the first source, what the file knows of this source stays valid.
        shape: Its shape.
        read: Computes its values.
        sources: The weights that it is made from.
        step: What was done to them.
    """
    # Through several rules: the origin stays the names in the file, and steps add up.
    origin = tuple(dict.fromkeys(known for tensor in sources for known in tensor.origin or (tensor.name,)))
    steps = tuple(dict.fromkeys(known for tensor in sources for known in tensor.steps))
    # bfloat16 and float32 give float32, as `concatenate` and `+` do on the values.
    dtype = np.result_type(*(tensor.dtype for tensor in sources)).name
    derived = replace(sources[0], shape=shape, dtype=dtype, read=read, origin=origin, steps=(*steps, step))
    if name == derived.name:
        return derived
    return replace(derived, name=name, position=None, aliases=(), locations=())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RestoreError(f"`transform` needs regular expressions. `{pattern}`: {error}.") from error


def _expanded(hit: re.Match[str], name: str) -> str:
    """Replaces `\\1` in a new name by what the first group of the pattern matched."""
    try:
        return hit.expand(name)
    except (re.error, IndexError) as error:
        raise RestoreError(f"`to` of `transform` needs valid new names. `{name}`: {error}.") from error


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return tuple(length if i == axis % len(shape) else size for i, size in enumerate(shape))


# What computes the values. The results are contiguous: a view would keep the whole array that was read in memory.


def _transpose(read: _Read, axes: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(read().transpose(axes))


def _reshape(read: _Read, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.ascontiguousarray(np.reshape(read(), shape, order="F" if order == "F" else "C"))


def _slice(read: _Read, part: slice, axis: int) -> np.ndarray:
    array = read()
    return np.ascontiguousarray(array[(slice(None),) * (axis % array.ndim) + (part,)])


def _concatenate(reads: Sequence[_Read], axis: int) -> np.ndarray:
    return np.concatenate([read() for read in reads], axis=axis)


def _add(reads: Sequence[_Read]) -> np.ndarray:
    first, *others = (read() for read in reads)
    return sum(others, start=first)
