"""What is said of the answers of a network to test rows: arrays in, plain data for `report.json` out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES, LABELS, QUANTITIES = "classes", "labels", "numbers"
MOST_WORST = 12
_MOST_CONFUSION = 30  # classes in a matrix; of more, the pairs that are taken for each other most often
_MOST_CLASSES = 1000
_MOST_PAIRS = 12
_BINS = 10  # of calibration
_HISTOGRAM, _POINTS = 25, 400
_LEAST = 1e-7


@dataclass(frozen=True, eq=False)
class OutputRows:
    """Targets and answers of an output in the form in which they can be compared.

    Attributes:
        kind: `classes` (a row has one), `labels` (a row may have several) or `numbers`.
        names: Name of each class, label or column of numbers.
        targets: Number of the class, int64 of shape `(rows,)`; or bool `(rows, labels)`; or float64 `(rows, columns)`.
        scores: For each class or label how likely it is, or the numbers themselves, float64 `(rows, width)`.
        are_probabilities: Whether the scores of classes or labels are probabilities.
        threshold: The least score of a label that the network gives a row.
    """

    kind: str
    names: tuple[str, ...]
    targets: np.ndarray
    scores: np.ndarray
    are_probabilities: bool
    threshold: float = 0.5


def facts_of(rows: OutputRows) -> dict[str, Any]:
    """Returns what the report shows of an output: per class, label or column, calibration, confusion, residuals."""
    kinds = {CLASSES: _of_classes, LABELS: _of_labels, QUANTITIES: _of_numbers}
    return {"kind": rows.kind, "rows": len(rows.targets), **kinds[rows.kind](rows)}


def errors_of_rows(rows: OutputRows) -> np.ndarray:
    """Returns how far off each row is, float64 of shape `(rows,)`, 0 and above.

    Of classes and labels it is the negative logarithm of the likelihood of what is true (the mean over the labels), and
    of scores that are no probabilities by how much another class leads; of numbers the residual in units of the spread
    of the targets.
    """
    number = np.arange(len(rows.targets))
    if rows.kind == QUANTITIES:
        spread = rows.targets.std(axis=0)
        return np.abs((rows.scores - rows.targets) / np.where(spread > 0, spread, 1)).mean(axis=1)
    if not rows.are_probabilities:
        if rows.kind == LABELS:
            return np.maximum(np.where(rows.targets, -rows.scores, rows.scores), 0).mean(axis=1)
        return rows.scores.max(axis=1) - rows.scores[number, rows.targets]
    if rows.kind == LABELS:
        likely = np.where(rows.targets, rows.scores, 1 - rows.scores)
        return -np.log(likely.clip(_LEAST, 1)).mean(axis=1)
    return -np.log(rows.scores[number, rows.targets].clip(_LEAST, 1))


def worst_rows(rows: OutputRows, *, limit: int = MOST_WORST) -> list[dict[str, Any]]:
    """Returns the rows that are furthest off, worst first: `row`, `actual`, `answer`, and of classes `score`.

    Args:
        rows: Targets and answers of an output.
        limit: How many at most.
    """
    errors = errors_of_rows(rows)
    wrong = np.ones(len(errors), bool) if rows.kind == QUANTITIES else ~_is_right(rows)
    order = np.argsort(-errors, kind="stable")
    return [_as_text(rows, int(row)) for row in order[wrong[order]][:limit]]


def _is_right(rows: OutputRows) -> np.ndarray:
    if rows.kind == LABELS:
        return ((rows.scores > rows.threshold) == rows.targets).all(axis=1)
    return rows.scores.argmax(axis=1) == rows.targets


def _as_text(rows: OutputRows, row: int) -> dict[str, Any]:
    if rows.kind == QUANTITIES:
        pairs = zip(rows.names, rows.targets[row], rows.scores[row], strict=True)
        several = rows.scores.shape[1] > 1
        shown = [(f"{name} " if several else "", y, answer) for name, y, answer in pairs][:6]
        actual = ", ".join(f"{name}{y:.4g}" for name, y, _ in shown)
        return {"row": row, "actual": actual, "answer": ", ".join(f"{name}{of:.4g}" for name, _, of in shown)}
    if rows.kind == LABELS:
        taken = rows.scores[row] > rows.threshold
        both = (_names(rows.names, rows.targets[row]), _names(rows.names, taken))
        return {"row": row, "actual": both[0], "answer": both[1]}
    answer = int(rows.scores[row].argmax())
    score = {"score": float(rows.scores[row, answer])} if rows.are_probabilities else {}
    return {"row": row, "actual": rows.names[rows.targets[row]], "answer": rows.names[answer], **score}


def _names(names: Sequence[str], chosen: np.ndarray) -> str:
    places = np.flatnonzero(chosen)
    return ", ".join(str(names[place]) for place in places[:6]) + (" ..." if len(places) > 6 else "") or "none"


def _of_classes(rows: OutputRows) -> dict[str, Any]:
    width, answers = rows.scores.shape[1], rows.scores.argmax(axis=1)
    hits = np.bincount(rows.targets[answers == rows.targets], minlength=width)
    actual, taken = np.bincount(rows.targets, minlength=width), np.bincount(answers, minlength=width)
    facts: dict[str, Any] = {"classes": _shares(rows.names, hits, actual, taken), "right": int(hits.sum())}
    pairs = np.bincount(rows.targets * width + answers, minlength=width * width) if width <= _MOST_CLASSES else None
    if pairs is not None:
        confusion = pairs.reshape(width, width)
        wrong = confusion - np.diag(np.diag(confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
        places = [divmod(int(place), width) for place in order if wrong.flat[place]]
        facts["confused"] = [(rows.names[a], rows.names[b], int(wrong[a, b])) for a, b in places]
        facts |= {"confusion": confusion.tolist()} if width <= _MOST_CONFUSION else {}
    if rows.are_probabilities:
        facts["calibration"] = _calibration(rows.scores.max(axis=1), answers == rows.targets)
    return facts


def _of_labels(rows: OutputRows) -> dict[str, Any]:
    taken, hits = rows.scores > rows.threshold, (rows.scores > rows.threshold) & rows.targets
    facts: dict[str, Any] = {"classes": _shares(rows.names, hits.sum(0), rows.targets.sum(0), taken.sum(0))}
    for place, of_label in enumerate(facts["classes"]):
        of_label |= best_threshold(rows.scores[:, place], rows.targets[:, place])
    facts |= {"threshold": rows.threshold, "right": int((taken == rows.targets).all(axis=1).sum())}
    if rows.are_probabilities:
        facts["calibration"] = _calibration(rows.scores.reshape(-1), rows.targets.reshape(-1))
    return facts


def _shares(names: Sequence[str], hits: Any, actual: Any, taken: Any) -> list[dict[str, Any]]:
    """Returns rows, recall and precision of each class; of very many, those of the first."""
    return [
        {
            "name": name,
            "rows": int(actual[place]),
            "recall": float(hits[place] / actual[place]) if actual[place] else None,
            "precision": float(hits[place] / taken[place]) if taken[place] else None,
        }
        for place, name in enumerate(names[:_MOST_CLASSES])
    ]


def best_threshold(scores: np.ndarray, is_label: np.ndarray) -> dict[str, Any]:
    """Returns the threshold with the highest F1 of a label on some rows, and that F1; `None` where no row has it.

    Args:
        scores: How likely each row has the label, shape `(rows,)`.
        is_label: Whether it has, bool of the same shape.
    """
    if not is_label.any():
        return {"best_threshold": None, "best_f1": None}
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_label[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + is_label.sum())
    # A threshold lies between two scores that differ.
    f1[:-1][scores[order][:-1] == scores[order][1:]] = 0
    best = int(f1.argmax())
    below = scores[order][best + 1] if best + 1 < len(scores) else scores[order][best] - 1e-6
    return {"best_threshold": float((scores[order][best] + below) / 2), "best_f1": float(f1[best])}


def _calibration(likely: np.ndarray, is_true: np.ndarray) -> dict[str, Any]:
    """Returns how often what is called so likely is true, and the expected calibration error (Guo et al., 2017)."""
    place = np.minimum((likely.clip(0, 1) * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    known = np.maximum(counts, 1)
    confidence = np.bincount(place, weights=likely, minlength=_BINS) / known
    share = np.bincount(place, weights=is_true, minlength=_BINS) / known
    error = float((counts * np.abs(confidence - share)).sum() / max(counts.sum(), 1))
    bins = [
        {"confidence": float(confidence[b]), "share": float(share[b]), "rows": int(counts[b])}
        for b in range(_BINS)
        if counts[b]
    ]
    return {"error": error, "bins": bins}


def _of_numbers(rows: OutputRows) -> dict[str, Any]:
    columns = []
    chosen = np.linspace(0, len(rows.targets) - 1, min(_POINTS, len(rows.targets))).astype(int)
    for place, name in enumerate(rows.names[:_MOST_PAIRS]):
        y, answer = rows.targets[:, place], rows.scores[:, place]
        residuals, spread = answer - y, float(y.var())
        finite = residuals[np.isfinite(residuals)]
        counts, edges = np.histogram(finite, bins=_HISTOGRAM)
        columns.append(
            {
                "name": name,
                "mean_absolute_error": float(np.abs(residuals).mean()),
                "root_mean_squared_error": float(np.sqrt((residuals**2).mean())),
                "bias": float(residuals.mean()),
                "r2": float(1 - (residuals**2).mean() / spread) if spread > 0 else None,
                "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
                "points": [(float(y[row]), float(answer[row])) for row in chosen],
            }
        )
    return {"columns": columns, "more_columns": max(len(rows.names) - _MOST_PAIRS, 0)}
