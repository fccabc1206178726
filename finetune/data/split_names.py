"""The names of splits: those that are used here, and what folders, files and columns of other people call them."""

import re
from collections.abc import Iterable, Mapping, Sequence

from finetune.errors import DataError, quote

SPLITS = ("train", "test", "validation")
ALSO_CALLED = {"train": ("training",), "test": ("testing",), "validation": ("val", "valid", "dev")}
_SPLIT_OF = {name: split for split in SPLITS for name in (split, *ALSO_CALLED[split])}


def split_prefix(name: str) -> str:
    """Returns the name of a split that is the first word of a file's name, as it is written there; empty without one.

    >>> split_prefix("Valid_00-of-04.tfrecord")
    'Valid'
    """
    first = re.match("[^\\W\\d_]*", name)
    return first[0] if first and is_split_name(first[0]) else ""


def is_split_name(name: str) -> bool:
    """Returns whether a name stands for a split."""
    return name.casefold() in _SPLIT_OF


def splits_of_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the split that each name stands for, in any case; names that are none are left out.

    Raises:
        DataError: Two names stand for the same split.

    Examples:
        >>> splits_of_names(["train", "dev", "test", "notes"])
        {'train': 'train', 'dev': 'validation', 'test': 'test'}
    """
    splits = {name: split for name in names if (split := _SPLIT_OF.get(name.casefold()))}
    for split in SPLITS:
        same = [name for name in splits if splits[name] == split]
        if len(same) > 1:
            raise DataError(f"Each split has a single name. {quote(same)} all stand for `{split}`. Rename all but one.")
    return splits


def with_rows_to_test(splits: Mapping[str, str]) -> dict[str, str]:
    """Returns the splits of names, of which one stands for rows to test on if any are held out.

    Rows to validate on that are all there is beside those to train on are the only ones left to test on.

    >>> with_rows_to_test({"train": "train", "val": "validation"})
    {'train': 'train', 'val': 'test'}
    """
    if "test" in splits.values():
        return dict(splits)
    return {name: "test" if split == "validation" else split for name, split in splits.items()}


def split_folders(names: Sequence[str]) -> dict[str, str]:
    """Returns the split of each of the folders beside each other; empty where these are no splits.

    They are where all are called so, or one is called `train`: classes may be called `training` and `Train`.

    Raises:
        DataError: Two folders stand for the same split.
    """
    if "train" not in names and not all(map(is_split_name, names)):
        return {}
    splits = with_rows_to_test(splits_of_names(names))
    return splits if "train" in splits.values() else {}


def note_on_names(splits: Mapping[str, str]) -> str:
    """Says that rows test that are called otherwise; empty where there are none.

    Args:
        splits: What `split_folders` has returned.
    """
    other = [name for name, split in splits.items() if split == "test" and _SPLIT_OF[name.casefold()] != "test"]
    if not other:
        return ""
    return (
        f"`{other[0]}` is all there is beside `{next(name for name in splits if splits[name] == 'train')}`: its rows "
        "test. Where rows are to validate, `data.split: {validation: 0.1}` takes a share of the training rows"
    )
