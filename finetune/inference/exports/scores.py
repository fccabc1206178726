"""How well answers fit targets, in a figure that needs no model: what quantization costs."""

from typing import Any

import numpy as np

from finetune.inference.fine_tuned import FineTuned
from finetune.inference.record import OutputRecord
from finetune.models.output_names import by_output_name, of_output

SCORED_ROWS = 2048  # of the test rows at most


def targets_of(fine_tuned: FineTuned, record: OutputRecord, y: Any) -> np.ndarray:
    """Returns the targets of an output.

    Args:
        fine_tuned: The run.
        record: The output.
        y: Targets of some rows, as the model takes them.
    """
    named = by_output_name(fine_tuned.model, y)
    return np.asarray(of_output(named, record.name))


def score(record: OutputRecord, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Returns the share of right answers as `accuracy`, or for numbers the `mean_absolute_error`.

    Args:
        record: What the answers mean.
        answers: Probabilities of shape `(rows, classes)`, or numbers.
        targets: Numbers of classes, a target for each class or label, or numbers.
    """
    if record.kind == "numbers" or answers.ndim > 2:
        difference = answers.reshape(len(answers), -1) - targets.reshape(len(targets), -1)
        return {"mean_absolute_error": float(np.abs(difference).mean())}
    if record.kind == "labels":
        limits = np.array([record.thresholds.get(name, 0.5) for name in record.names] or [0.5])
        return {"accuracy": float(((answers >= limits) == (targets > 0.5)).mean())}
    is_one_hot = targets.ndim == 2 and targets.shape[1] == answers.shape[1]
    classes = targets.argmax(axis=1) if is_one_hot else (targets.reshape(-1) > 0 if targets.min() < 0 else targets)
    return {"accuracy": float((answers.argmax(axis=1) == classes.reshape(-1).astype(np.int64)).mean())}
