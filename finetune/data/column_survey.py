"""What a column of a table looks like, for `finetune new`: numbers, categories, sentences, files, or ids."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data.file_endings import IMAGES, SOUNDS
from finetune.data.split_names import SPLITS, is_split_name, splits_of_names
from finetune.data.table_column import Column
from finetune.data.table_head import is_unnamed
from finetune.errors import DataError

_PLACEHOLDERS = (
    *("n/a", "na", "n.a.", "#n/a", "nan", "none", "nil", "null", "missing", "unknown", "undefined", "tbd"),
    *("#null!", "#value!", "#div/0!", "#ref!"),  # of spreadsheets
)
_NAMES_OF_IDS = ("id", "index", "idx", "key", "uuid", "name", "rownumber")


@dataclass(frozen=True)
class ColumnSurvey:
    """A column of a table, or a feature of records.

    Attributes:
        name: Its name.
        kind: `number`, `category`, `text`, `image`, `audio`, `split` for which rows train and which test, or `id` for
            what tells rows apart.
        distinct: How many different values it has; 0 where that is unknown.
        is_whole: Whether its values are whole numbers.
        has_labels: Whether its values are several labels, as `a|b`.
        rarest: Rows of the value that fewest rows have; 0 where that is unknown.
        most: Rows of the value that most rows have.
        words: Words of a text, in the mean.
        repeats: Whether it is text although most of its values occur several times.
        missing: Rows without a value.
        example: Its first value.
        strays: What is no number in a column of almost nothing but numbers, with places; empty where there is none.
    """

    name: str
    kind: str
    distinct: int = 0
    is_whole: bool = False
    has_labels: bool = False
    rarest: int = 0
    most: int = 0
    words: float = 0.0
    repeats: bool = False
    missing: int = 0
    example: str = ""
    strays: str = ""


def is_placeholder(text: str) -> bool:
    """Whether a value among numbers stands for a missing one: a usual word for that, or marks alone, such as `-`."""
    return text.casefold() in _PLACEHOLDERS or not any(map(str.isalnum, text))


def survey_of_column(column: Column, rows: int) -> ColumnSurvey:
    """Returns what a column looks like.

    Args:
        column: Its values.
        rows: How many rows the table has.
    """
    if is_unnamed(column.name):
        return ColumnSurvey(column.name, "id")
    if column.kind == "number":
        present = column.values[~np.isnan(column.values)]
        values, counts = np.unique(present, return_counts=True)
        is_whole = bool(len(present)) and bool((present == np.round(present)).all())
        ascending = is_whole and len(values) == rows > 2 and values[-1] - values[0] == rows - 1
        kind = "id" if (is_whole and column.name.lower() in _NAMES_OF_IDS) or ascending else "number"
        few = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
        lacking = rows - len(present)
        return ColumnSurvey(column.name, kind, len(values), is_whole, rarest=few[0], most=few[1], missing=lacking)
    texts = [text for text in column.values.tolist() if text]
    counts = Counter(texts)
    words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    endings = [Path(text).suffix.lower() for text in texts[:1000]]
    kind = "category"
    if endings and all(ending in IMAGES for ending in endings):
        kind = "image"
    elif endings and all(ending in SOUNDS for ending in endings):
        kind = "audio"
    elif _are_splits(counts):
        kind = "split"
    elif words >= 3 and len(counts) > len(texts) / 2:
        kind = "text"
    elif len(counts) > max(20, len(texts) / 2):
        kind = "id"
    has_labels = kind == "category" and any("|" in text for text in texts)
    few = (min(counts.values()), max(counts.values())) if counts else (0, 0)
    about = {"missing": rows - len(texts), "example": texts[0] if texts else ""}
    return ColumnSurvey(column.name, kind, len(counts), False, has_labels, *few, words, **about)


def _are_splits(values: Collection[str]) -> bool:
    if len(values) > len(SPLITS) or not all(map(is_split_name, values)):
        return False
    try:
        return {*SPLITS[:2]} <= {*splits_of_names(values).values()}
    except DataError:  # two names of the same split
        return False


def with_repeated_texts(columns: Sequence[ColumnSurvey]) -> tuple[ColumnSurvey, ...]:
    """Takes columns of sentences for text though each sentence stands in many rows, as the questions of answers do.

    Names of categories are shorter, and there are fewer of them. Beside a column that is text for sure, less is asked.
    """
    beside = any(column.kind == "text" for column in columns)
    words, distinct = (4, 10) if beside else (5, 20)
    return tuple(
        replace(column, kind="text", repeats=True)
        if column.kind == "category" and column.words >= words and column.distinct > distinct
        else column
        for column in columns
    )
