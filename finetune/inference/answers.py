"""From the outputs of a model to answers: labels with their probabilities, or numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.inference.record import OutputRecord

Answer = dict[str, Any]
_THRESHOLD = 0.5


def probabilities_of(record: OutputRecord, values: np.ndarray) -> np.ndarray:
    """Returns the probability of each class or label.

    Args:
        record: What the output means: `classes` or `labels`.
        values: What the model gives, shape `(rows, outputs)`. A single output is the probability of the second of two
            classes.

    Returns:
        Float64 of shape `(rows, classes)`.
    """
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    is_single = values.shape[1] == 1 and record.kind == "classes"
    if record.logits:
        values = _sigmoid(values) if is_single or record.kind == "labels" else _softmax(values)
    elif "hinge" in record.loss.replace("_", "").lower() and "categorical" not in record.loss.lower():
        values = np.clip((values + 1) / 2, 0, 1)  # -1 and 1 are its two answers
    return np.concatenate([1 - values, values], axis=1) if is_single else values


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def class_labels(record: OutputRecord, count: int) -> list[str]:
    """Returns the name of each class, or its number where it has none."""
    return [*record.names[:count], *map(str, range(len(record.names), count))]


def answers(
    record: OutputRecord, values: np.ndarray, *, top: int = 3, threshold: float | None = None
) -> Iterator[Answer]:
    """Yields the answer for each row.

    Args:
        record: What the output means.
        values: What the model gives, shape `(rows, ...)`.
        top: How many classes are listed, most probable first, >= 1.
        threshold: Probability from which a row has a label, from 0 to 1; by default that of each label in the record.

    Yields:
        `label`, `probability` and `top` for classes; `labels` and `probabilities` where there may be several; `value`
        or `values` for numbers, in the units of the targets.
    """
    if record.kind == "numbers" or np.ndim(values) > 2:
        yield from _numbers(record, np.asarray(values))
        return
    probabilities = probabilities_of(record, values)
    names = class_labels(record, probabilities.shape[1])
    if record.kind == "labels":
        limits = {name: record.thresholds.get(name, _THRESHOLD) if threshold is None else threshold for name in names}
        for row in probabilities:
            by_name = {name: float(value) for name, value in zip(names, row, strict=True)}
            yield {
                "labels": [name for name, value in by_name.items() if value >= limits[name]],
                "probabilities": by_name,
            }
        return
    for row in probabilities:
        best = np.argsort(-row, kind="stable")[: max(top, 1)]
        listed = [{"label": names[place], "probability": float(row[place])} for place in best]
        yield {**listed[0], "top": listed}


def _numbers(record: OutputRecord, values: np.ndarray) -> Iterator[Answer]:
    for row in values.astype(np.float64):
        if row.size == 1:
            yield {"value": float(row.reshape(()))}
        elif row.ndim == 1 and len(record.names) == len(row):
            yield {"values": dict(zip(record.names, row.tolist(), strict=True))}
        else:
            yield {"values": row.tolist()}


def flat(answer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns an answer as the cells of a CSV row: `label`, `probability`, `label_2` and so on."""
    cells: dict[str, Any] = {}
    for name, value in answer.items():
        key = f"{prefix}{name}"
        if name == "top":
            for number, each in enumerate(value[1:], start=2):
                cells |= {f"{prefix}{inner}_{number}": each[inner] for inner in each}
        elif isinstance(value, Mapping):
            singular = {"probabilities": "probability", "values": "value"}.get(name, name)
            cells |= flat({f"{singular}/{inner}": each for inner, each in value.items()}, prefix)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            cells[key] = "|".join(map(str, value))
        else:
            cells[key] = value
    return cells
