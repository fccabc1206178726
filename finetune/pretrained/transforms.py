"""Rules that bring weights of a foreign layout into Keras': transposed, reshaped, split, joined, added."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import ml_dtypes  # noqa: F401 - lets NumPy know `bfloat16` by name
import numpy as np

from finetune.errors import RestoreError, quote
from finetune.pretrained.formats.weight_file import Tensor

_Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Transform:
    r"""One rule, which does one thing to every weight whose whole name a pattern matches.

    Attributes:
        names: Regular expressions over whole names. Several, in their order, only to concatenate and to add.
        to: New names, which may refer to groups of the pattern (`\1`): one for each part when splitting, one otherwise;
            empty keeps the name.
        transpose: The axes in their new order.
        reshape: The new shape; one number may be -1.
        order: How `reshape` counts: `C`, the last axis fastest (NumPy, PyTorch), or `F`, the first axis fastest.
        split: Into how many equal parts, or the length of each part.
        concatenate: Whether the weights, one of each pattern, become one.
        add: Whether their sum becomes one.
        axis: What `split` and `concatenate` go along.
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

    def __str__(self) -> str:
        along = f" along axis {self.axis}"
        ordered = f" in order {self.order}" if self.order != "C" else ""
        said = {
            "transpose": self.transpose is not None and f"transpose {list(self.transpose)}",
            "reshape": self.reshape is not None and f"reshape {list(self.reshape)}{ordered}",
            "split": self.split and f"split {list(self.split) if type(self.split) is tuple else self.split}{along}",
            "concatenate": self.concatenate and f"concatenate{along}",
            "add": self.add and "add",
        }
        return next((text for text in said.values() if text), "rename")


def transformed(tensors: Sequence[Tensor], rules: Iterable[Transform]) -> list[Tensor]:
    """Applies rules one after the other. No value is read yet.

    Args:
        tensors: The weights of a file, with the names that `rename` gave them.
        rules: What to do to them.

    Returns:
        The weights that come out; each knows its `origin` in the file and the `steps` that led to it.

    Raises:
        RestoreError: A rule matches nothing, or does not fit a weight that it matches.
    """
    every = list(tensors)
    for rule in rules:
        every = list(_joined(every, rule) if rule.concatenate or rule.add else _each(every, rule))
    return every


def _each(tensors: Sequence[Tensor], rule: Transform) -> Iterator[Tensor]:
    pattern = _compiled(rule.names[0])
    hits = {id(tensor): pattern.fullmatch(tensor.name) for tensor in tensors}
    matched = [tensor for tensor in tensors if hits[id(tensor)]]
    _require_match(rule, rule.names[0], matched, tensors)
    _require_fit(rule, matched)
    for tensor in tensors:
        hit = hits[id(tensor)]
        yield from _applied(tensor, rule, hit) if hit else [tensor]


def _require_match(rule: Transform, pattern: str, matched: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    if not matched:
        raise RestoreError(
            f"Each rule of `transform` must match whole names of weights, and `{pattern}` ({rule}) matches none. After "
            f"the rules before it there are {quote(tensor.name for tensor in tensors)}."
        )


def _require_fit(rule: Transform, matched: Sequence[Tensor]) -> None:
    wrong = [tensor for tensor in matched if not _fits(tensor, rule)]
    if wrong:
        listed = quote([f"{tensor.name} {tensor.shape}" for tensor in wrong])
        raise RestoreError(
            f"`transform` must fit each weight that its pattern matches. `{rule}` does not fit {listed}. Narrow the "
            f"pattern `{'`, `'.join(rule.names)}`, or mend the rule."
        )


def _fits(tensor: Tensor, rule: Transform) -> bool:
    shape = tensor.shape
    if rule.transpose is not None:
        return sorted(rule.transpose) == list(range(len(shape)))
    if rule.reshape is not None:
        return _new_shape(shape, rule.reshape) is not None
    if rule.split is not None:
        return -len(shape) <= rule.axis < len(shape) and _parts(shape[rule.axis], rule.split) is not None
    return True


def _new_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    known = prod(size for size in wanted if size != -1)
    if -1 in wanted and known and prod(shape) % known == 0:
        return tuple(prod(shape) // known if size == -1 else size for size in wanted)
    return wanted if prod(wanted) == prod(shape) and -1 not in wanted else None


def _parts(length: int, split: int | tuple[int, ...]) -> list[slice] | None:
    sizes = split if isinstance(split, tuple) else (length // split,) * split
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(*ends[i : i + 2]) for i in range(len(sizes))] if ends[-1] == length else None


def _applied(tensor: Tensor, rule: Transform, hit: re.Match[str]) -> Iterator[Tensor]:
    names = [_expanded(hit, name) for name in rule.to] or [tensor.name]
    if rule.transpose is not None:
        shape = tuple(tensor.shape[axis] for axis in rule.transpose)
        yield _made(names[0], shape, partial(_transpose, tensor.read, rule.transpose), [tensor], str(rule))
    elif rule.reshape is not None:
        shape = _new_shape(tensor.shape, rule.reshape) or ()
        yield _made(names[0], shape, partial(_reshape, tensor.read, shape, rule.order), [tensor], str(rule))
    elif rule.split is not None:
        parts = _parts(tensor.shape[rule.axis], rule.split) or []
        for i, (name, part) in enumerate(zip(names, parts, strict=True), start=1):
            shape = _with_length(tensor.shape, rule.axis, part.stop - part.start)
            step = f"{rule}, part {i}"
            yield _made(name, shape, partial(_cut, tensor.read, part, rule.axis), [tensor], step)
    else:
        yield _made(names[0], tensor.shape, tensor.read, [tensor], str(rule))


def _joined(tensors: Sequence[Tensor], rule: Transform) -> Iterator[Tensor]:
    groups = _groups(tensors, rule)
    _require_fit_together(rule, groups)
    whole = {id(group[0]): _join(name, group, rule) for name, group in groups.items()}
    parts = {id(tensor) for group in groups.values() for tensor in group}
    for tensor in tensors:
        if id(tensor) in whole:
            yield whole[id(tensor)]
        elif id(tensor) not in parts:
            yield tensor


def _groups(tensors: Sequence[Tensor], rule: Transform) -> dict[str, list[Tensor]]:
    """The weights that become one by its name, in the order of the patterns."""
    found: list[dict[str, list[Tensor]]] = []
    for text in rule.names:
        pattern, of_name = _compiled(text), {}
        for tensor in tensors:
            if hit := pattern.fullmatch(tensor.name):
                of_name.setdefault(_expanded(hit, rule.to[0]), []).append(tensor)
        _require_match(rule, text, list(of_name.values())[:1] and [tensors[0]], tensors)
        found.append(of_name)
    names = list(dict.fromkeys(name for of_name in found for name in of_name))
    uneven = [name for name in names if any(len(of_name.get(name, [])) != 1 for of_name in found)]
    if uneven:
        raise RestoreError(
            f"`transform` joins one weight of each pattern. `{rule}` of `{'`, `'.join(rule.names)}` finds another "
            f"number for {quote(uneven)}. Let the groups in the patterns tell the weights apart."
        )
    return {name: [of_name[name][0] for of_name in found] for name in names}


def _require_fit_together(rule: Transform, groups: dict[str, list[Tensor]]) -> None:
    wrong = [group for group in groups.values() if _joined_shape([tensor.shape for tensor in group], rule) is None]
    if wrong:
        listed = quote([" and ".join(f"{tensor.name} {tensor.shape}" for tensor in group) for group in wrong])
        raise RestoreError(
            f"`transform` joins weights whose shapes fit. `{rule}` does not fit {listed}. Mend the rule."
        )


def _joined_shape(shapes: Sequence[tuple[int, ...]], rule: Transform) -> tuple[int, ...] | None:
    if rule.add:
        return shapes[0] if len(set(shapes)) == 1 else None
    if len({len(shape) for shape in shapes}) > 1 or not -len(shapes[0]) <= rule.axis < len(shapes[0]):
        return None
    total = sum(shape[rule.axis] for shape in shapes)
    grown = {_with_length(shape, rule.axis, total) for shape in shapes}
    return grown.pop() if len(grown) == 1 else None


def _join(name: str, group: Sequence[Tensor], rule: Transform) -> Tensor:
    reads = [tensor.read for tensor in group]
    read = partial(_sum, reads) if rule.add else partial(_concatenate, reads, rule.axis)
    shape = _joined_shape([tensor.shape for tensor in group], rule) or ()
    return _made(name, shape, read, group, str(rule))


def _made(name: str, shape: tuple[int, ...], read: _Read, sources: Sequence[Tensor], step: str) -> Tensor:
    origin = tuple(dict.fromkeys(known for tensor in sources for known in tensor.origin or (tensor.name,)))
    steps = tuple(dict.fromkeys(known for tensor in sources for known in tensor.steps))
    dtype = np.result_type(*(tensor.dtype for tensor in sources)).name
    made = replace(sources[0], shape=shape, dtype=dtype, read=read, origin=origin, steps=(*steps, step))
    # What else the file knew of the weight belongs to its old name.
    return made if name == made.name else replace(made, name=name, position=None, aliases=(), places=())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RestoreError(f"`transform` needs regular expressions. `{pattern}`: {error}.") from error


def _expanded(hit: re.Match[str], name: str) -> str:
    try:
        return hit.expand(name)
    except (re.error, IndexError) as error:
        raise RestoreError(f"`transform` names with `to`. `{name}` is no such name: {error}.") from error


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return tuple(length if i == axis % len(shape) else size for i, size in enumerate(shape))


def _transpose(read: _Read, axes: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(read().transpose(axes))


def _reshape(read: _Read, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.ascontiguousarray(np.reshape(read(), shape, order="F" if order == "F" else "C"))


def _cut(read: _Read, part: slice, axis: int) -> np.ndarray:
    array = read()
    return np.ascontiguousarray(array[(slice(None),) * (axis % array.ndim) + (part,)])


def _concatenate(reads: Sequence[_Read], axis: int) -> np.ndarray:
    return np.concatenate([read() for read in reads], axis=axis)


def _sum(reads: Sequence[_Read]) -> np.ndarray:
    first, *rest = (read() for read in reads)
    return sum(rest, start=first)
