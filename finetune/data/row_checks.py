"""Reads every row once and reports what is wrong with it: what training would find late, or never."""

import hashlib
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import FEW_ROWS, SPLITS, Examples, Split, leaves, rare_classes
from finetune.data.rows import Rows, rows_of, take
from finetune.errors import DataError, FinetuneError, reason
from finetune.machine_failures import machine_failure, raise_machine_failure

_BATCH = 64


@dataclass
class SplitFacts:
    """What reading every row of a split has shown.

    Attributes:
        digests: A hash of the inputs of each readable row, by the number of the row.
        unreadable: Why a row cannot be read, by its number.
        not_finite: Numbers of the rows that hold values that are not finite.
        ranges: Least and greatest value of each input, by its name.
    """

    digests: dict[int, bytes] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


def read_every_row(split: Split, on_rows: Callable[[int], None] = lambda count: None) -> SplitFacts:
    """Reads every row of a split, several at once.

    Args:
        split: The rows.
        on_rows: Called with the number of rows that were read since the last call.
    """
    facts, inputs = SplitFacts(), rows_of(split.x)

    def read(start: int) -> SplitFacts:
        # Returns facts and no rows: those of all batches would not fit into memory.
        part, numbers = SplitFacts(), range(start, min(start + _BATCH, len(split)))
        try:
            batch = take(inputs, tf.constant(numbers, tf.int64))
        except tf.errors.CancelledError:
            raise
        except Exception as error:  # decoders raise errors of many classes; a row cannot be read: which?
            raise_machine_failure(error, "Reading the rows")
            for number in numbers:
                _note_alone(part, number, inputs)
        else:
            _note(part, numbers, batch)
        return part

    with ThreadPoolExecutor() as pool:
        for part in pool.map(read, range(0, len(split), _BATCH)):
            facts.digests |= part.digests
            facts.unreadable |= part.unreadable
            facts.not_finite += part.not_finite
            for name, (low, high) in part.ranges.items():
                _widen(facts, name, low, high)
            on_rows(len(part.digests) + len(part.unreadable))
    return facts


def _widen(facts: SplitFacts, name: str, low: float, high: float) -> None:
    known = facts.ranges.get(name, (low, high))
    facts.ranges[name] = min(known[0], low), max(known[1], high)


def _note_alone(facts: SplitFacts, number: int, inputs: Any) -> None:
    try:
        row = take(inputs, tf.constant([number], tf.int64))
    except tf.errors.CancelledError:
        raise
    except Exception as error:  # kept, and shown as the reason why the row cannot be read
        raise_machine_failure(error, f"Reading row {number}")
        facts.unreadable[number] = reason(error).split("{{")[0].rstrip(" [.:")
    else:
        _note(facts, range(number, number + 1), row)


def _note(facts: SplitFacts, numbers: range, batch: Any) -> None:
    arrays = [(name, np.asarray(tensor)) for name, tensor in leaves("", batch)]
    finite = np.ones(len(numbers), bool)
    for name, array in arrays:
        if array.dtype.kind == "f":
            finite &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if array.dtype.kind in "iuf" and array.size:
            _widen(facts, name, float(array.min()), float(array.max()))
    facts.not_finite += [numbers[row] for row in np.flatnonzero(~finite)]
    for place, number in enumerate(numbers):
        digest = hashlib.sha256()
        for name, array in arrays:
            row = array[place]
            digest.update(name.encode() + (row if isinstance(row, bytes) else np.ascontiguousarray(row).tobytes()))
        facts.digests[number] = digest.digest()


def problems_of(
    examples: Examples, on_rows: Callable[[int], None] = lambda count: None
) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """Reads every row of all splits.

    Args:
        examples: The examples.
        on_rows: Called with the number of rows that were read since the last call.

    Returns:
        A sentence for each kind of problem, and the least and the greatest value of each input of the training rows, by
        its name.
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
    return problems + _repeated(examples, facts) + _rare_classes(examples), facts["train"].ranges


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


def _rare_classes(examples: Examples) -> list[str]:
    rare = [f"`{name}` ({count})" for name, count in rare_classes(examples).items()]
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    listed = f"{len(rare)} classes have fewer than {FEW_ROWS} training rows: {', '.join(rare[:5])}{more}"
    return [listed] if rare else []


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
