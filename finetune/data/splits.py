"""Which rows train, test and validate: reproducible from the seed, without leaks where rows belong together."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.split_names import SPLITS, is_split_name, splits_of_names
from finetune.errors import DataError, did_you_mean, quote

Indices = dict[str, np.ndarray]


def split_rows(
    rows: int,
    *,
    test: float,
    validation: float = 0.0,
    by: str = "random",
    seed: int = 0,
    labels: Sequence[Any] | np.ndarray | None = None,
    keys: Sequence[Any] | np.ndarray | None = None,
) -> Indices:
    """Chooses the rows of each split.

    Args:
        rows: Number of rows, >= 2.
        test: Share of the rows to test on, in (0, 1).
        validation: Share of the rows to validate on, in [0, 1); together with `test` less than 1.
        by: `random`; `stratified`, each class in the same shares; `group`, rows with the same key in the same split;
            `hash`, by a hash of each row's key, so that a row stays in its split when others are added.
        seed: Seed of the choice.
        labels: The class of each row, for `stratified`.
        keys: The key of each row, for `group` and `hash`.

    Returns:
        The indices of the rows in each split, ascending. A split of share 0 is missing.

    Raises:
        DataError: A split would be empty.
    """
    shares = {"test": test, "validation": validation, "train": 1.0 - test - validation}
    shares = {name: share for name, share in shares.items() if share > 0}
    random = np.random.default_rng(seed)
    if by == "hash":
        chosen = _by_hash(_required(keys, by), shares, seed)
    elif by == "group":
        chosen = _by_group(_required(keys, by), shares, random)
    else:
        classes = _required(labels, by) if by == "stratified" else np.zeros(rows, np.int64)
        chosen = _by_class(classes, shares, random)
    names = list(shares)
    indices = {name: np.flatnonzero(chosen == names.index(name)) for name in SPLITS if name in shares}
    empty = [name for name, chosen_rows in indices.items() if not len(chosen_rows)]
    if empty:
        raise DataError(
            f"Every split needs at least one row. {rows} rows split {_shown(shares)} by `{by}` leave none for "
            f"{quote(empty)}. Choose other shares, or another way to split."
        )
    return indices


def split_by_column(values: Sequence[Any], name: str) -> Indices:
    """Reads the split of each row from a column.

    Args:
        values: `train`, `test` or `validation` for each row, or as `finetune.data.split_names` has it.
        name: Name of the column, for messages.

    Raises:
        DataError: There are other values, or no row to train or to test on.
    """
    texts = np.array([str(value) for value in values])
    written = sorted({*texts.tolist()})
    unknown = [text for text in written if not is_split_name(text)]
    if unknown:
        raise DataError(
            f"A column that says the split of each row holds {quote(SPLITS)}. `{name}` also holds {quote(unknown)}."
            f"{did_you_mean(unknown[0], SPLITS)}"
        )
    split_of = splits_of_names(written)
    texts = np.array([split_of[text] for text in texts.tolist()])
    indices = {split: np.flatnonzero(texts == split) for split in SPLITS if (texts == split).any()}
    missing = [split for split in SPLITS[:2] if split not in indices]
    if missing:
        raise DataError(
            f"There must be rows to train and to test on. The column `{name}` has none of {quote(missing)}."
        )
    return indices


def _by_class(classes: np.ndarray, shares: Mapping[str, float], random: np.random.Generator) -> np.ndarray:
    """Deals the shuffled rows of each class out by the shares; what rounding leaves over goes where most is missing."""
    chosen = np.empty(len(classes), np.int64)
    missing = np.zeros(len(shares))  # how many rows each split has too few so far, over all classes
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == label))
        missing += np.array(list(shares.values())) * len(rows)
        counts = np.floor(np.clip(missing, 0, None) + 1e-9).astype(int)
        counts[-1] = 0  # the training rows take what remains
        while counts.sum() > len(rows):
            counts[counts.argmax()] -= 1
        counts[-1] = len(rows) - counts.sum()
        missing -= counts
        chosen[rows] = np.repeat(np.arange(len(shares)), counts)
    return chosen


def _by_group(keys: np.ndarray, shares: Mapping[str, float], random: np.random.Generator) -> np.ndarray:
    """Gives each group of rows, in random order, to the split that lacks the most rows."""
    _, groups, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    lacking = np.array(list(shares.values())) * len(keys)
    split_of_group = np.empty(len(sizes), np.int64)
    for group in random.permutation(len(sizes)):
        split_of_group[group] = lacking.argmax()
        lacking[split_of_group[group]] -= sizes[group]
    return split_of_group[groups]


def _by_hash(keys: np.ndarray, shares: Mapping[str, float], seed: int) -> np.ndarray:
    digests = (hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8] for key in keys.tolist())
    places = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    return np.searchsorted(np.cumsum(list(shares.values()))[:-1], places, side="right")


def _required(values: Any, by: str) -> np.ndarray:
    if values is None:
        needed = "classes" if by == "stratified" else "a column of keys: name it with `column`"
        raise DataError(f"A split by `{by}` needs {needed}. These rows have none. Split them `random`.")
    return np.asarray(values)


def _shown(shares: Mapping[str, float]) -> str:
    return " / ".join(f"{share:.2g} {name}" for name, share in shares.items())
