"""Reads every row once and reports what is wrong with it: what training would find late, or never."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import SPLITS, Examples, Split, leaves
from finetune.data.rows import Rows, rows_of, take
from finetune.errors import DataError, FinetuneError, reason
from finetune.machine_failures import machine_failure, raise_machine_failure

Range = tuple[float, float]
_BATCH = 64


@dataclass
class SplitFacts:
    """What reading every row of a split has shown.

    Attributes:
        digests: A hash of the inputs of each readable row, by the number of the row.
        unreadable: Why a row cannot be read, by its number.
        not_finite: Numbers of the rows that hold values that are not finite.
        ranges: Least and greatest value of each input, by its name.
        target_ranges: The same of targets that are read with their rows; those in memory were checked before.
    """

    digests: dict[int, bytes] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    target_ranges: dict[str, Range] = field(default_factory=dict)


def read_every_row(split: Split, on_rows: Callable[[int], None] = lambda count: None) -> SplitFacts:
    """Reads every row of a split, several at once.

    Args:
        split: The rows.
        on_rows: Called with the number of rows that were read since the last call.
    """
    facts = SplitFacts()
    is_read = split.y is not None and any(isinstance(leaf, Rows) for _, leaf in leaves("", split.y))
    rows = (rows_of(split.x), rows_of(split.y) if is_read else ())

    def read(start: int) -> SplitFacts:
        # Returns facts and no rows: those of all batches would not fit into memory.
        part, numbers = SplitFacts(), range(start, min(start + _BATCH, len(split)))
        try:
            batch = take(rows, tf.constant(numbers, tf.int64))
        except tf.errors.CancelledError:
            raise
        except Exception as error:  # decoders raise errors of many classes; a row cannot be read: which?
            raise_machine_failure(error, "Reading the rows")
            for number in numbers:
                _note_alone(part, number, rows)
        else:
            _note(part, numbers, batch)
        return part

    with ThreadPoolExecutor() as pool:
        for part in pool.map(read, range(0, len(split), _BATCH)):
            facts.digests |= part.digests
            facts.unreadable |= part.unreadable
            facts.not_finite += part.not_finite
            _widen(facts.ranges, part.ranges)
            _widen(facts.target_ranges, part.target_ranges)
            on_rows(len(part.digests) + len(part.unreadable))
    return facts


def _widen(ranges: dict[str, Range], others: Mapping[str, Range]) -> None:
    for name, (low, high) in others.items():
        known = ranges.get(name, (low, high))
        ranges[name] = min(known[0], low), max(known[1], high)


def _note_alone(facts: SplitFacts, number: int, rows: Any) -> None:
    try:
        row = take(rows, tf.constant([number], tf.int64))
    except tf.errors.CancelledError:
        raise
    except Exception as error:  # kept, and shown as the reason why the row cannot be read
        raise_machine_failure(error, f"Reading row {number}")
        facts.unreadable[number] = reason(error).split("{{")[0].rstrip(" [.:")
    else:
        _note(facts, range(number, number + 1), row)


def _note(facts: SplitFacts, numbers: range, batch: tuple[Any, Any]) -> None:
    inputs, targets = ([(name, np.asarray(tensor)) for name, tensor in leaves("", part)] for part in batch)
    finite = np.ones(len(numbers), bool)
    for ranges, arrays in ((facts.ranges, inputs), (facts.target_ranges, targets if tf.nest.flatten(batch[1]) else [])):
        for name, array in arrays:
            values = array
            if array.dtype.kind == "f":
                is_finite = np.isfinite(array)
                finite &= is_finite.reshape(len(array), -1).all(axis=1)
                values = array if is_finite.all() else array[is_finite]
            if array.dtype.kind in "iuf" and values.size:
                _widen(ranges, {name: (float(values.min()), float(values.max()))})
    facts.not_finite += [numbers[row] for row in np.flatnonzero(~finite)]
    for place, number in enumerate(numbers):
        digest = hashlib.sha256()
        for name, array in inputs:
            row = array[place]
            digest.update(name.encode() + (row if isinstance(row, bytes) else np.ascontiguousarray(row).tobytes()))
        facts.digests[number] = digest.digest()


@dataclass(frozen=True)
class RowFindings:
    """What reading every row of all splits has shown.

    Attributes:
        problems: A sentence for each kind of problem.
        ranges: Least and greatest value of each input over all splits, by its name.
        target_ranges: The same of targets that are read with their rows, by the name of the split.
        is_damaged: Whether there are rows that cannot be read.
    """

    problems: list[str]
    ranges: dict[str, Range]
    target_ranges: dict[str, dict[str, Range]]
    is_damaged: bool


def problems_of(examples: Examples, on_rows: Callable[[int], None] = lambda count: None) -> RowFindings:
    """Reads every row of all splits.

    Args:
        examples: The examples.
        on_rows: Called with the number of rows that were read since the last call.
    """
    splits = {name: split for name in SPLITS if (split := getattr(examples, name))}
    facts = {name: read_every_row(split, on_rows) for name, split in splits.items()}
    problems = []
    for name, of_split in facts.items():
        if of_split.unreadable:
            reasons = sorted(set(of_split.unreadable.values()))[:2]
            rows = _places(examples, name, list(of_split.unreadable))
            problems.append(
                f"{_rows(of_split.unreadable)} of `{name}` that cannot be read: {rows} ({'; '.join(reasons)})"
            )
        if of_split.not_finite:
            rows = _places(examples, name, of_split.not_finite)
            problems.append(f"{_rows(of_split.not_finite)} of `{name}` with values that are not finite: {rows}")
    ranges: dict[str, Range] = {}
    for of_split in facts.values():
        _widen(ranges, of_split.ranges)
    of_targets = {name: of_split.target_ranges for name, of_split in facts.items() if of_split.target_ranges}
    damaged = any(of_split.unreadable for of_split in facts.values())
    return RowFindings(problems + _repeated(examples, facts), ranges, of_targets, damaged)


def _repeated(examples: Examples, facts: dict[str, SplitFacts]) -> list[str]:
    """Finds rows with the same inputs within the training rows, and across splits, where they leak."""
    problems, trained = [], {digest: number for number, digest in facts["train"].digests.items()}
    copies = [n for n, digest in facts["train"].digests.items() if trained[digest] != n]
    if copies:
        rows = _places(examples, "train", copies)
        problems.append(f"{_rows(copies)} of `train` with the same inputs as another: {rows}")
    for name in SPLITS[1:]:
        leaks = [n for n, digest in facts[name].digests.items() if digest in trained] if name in facts else []
        if leaks:
            rows = _places(examples, name, leaks)
            problems.append(
                f"{_rows(leaks)} of `{name}` among the training rows, too: {rows}. Its figures are too good"
            )
    return problems


def _rows(numbers: Sized) -> str:
    return f"{len(numbers):,} row{'s' if len(numbers) > 1 else ''}"


def _places(examples: Examples, split: str, numbers: list[int]) -> str:
    known = examples.places.get(split)
    shown = [f"`{known[number]}`" if known else f"`{split}` row {number}" for number in numbers[:5]]
    return ", ".join(shown) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


@contextmanager
def unreadable_rows_named(examples: Examples) -> Iterator[None]:
    """Names the rows that cannot be read, where an error in the block came from them.

    Args:
        examples: The examples that are read in the block.

    Raises:
        DataError: Rows cannot be read. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        if machine_failure(error):  # reading all rows again would meet it, too
            raise
        is_read = any(isinstance(leaf, Rows) and leaf.take_row for _, leaf in leaves("", examples.x_train))
        if not is_read or (isinstance(error, FinetuneError) and error.__cause__ is None):
            raise
        bad = {name: read_every_row(split).unreadable for name in SPLITS if (split := getattr(examples, name))}
        bad = {name: rows for name, rows in bad.items() if rows}
        if not bad:
            raise
        named = "; ".join(_places(examples, name, list(rows)) for name, rows in bad.items())
        reasons = sorted({reason for rows in bad.values() for reason in rows.values()})
        raise DataError(
            f"Every row must be readable. These are not: {named} ({reasons[0]}). Replace or remove them, or set "
            "`data.on_error: skip`."
        ) from error
