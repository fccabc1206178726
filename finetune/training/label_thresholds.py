"""The probability from which a row has a label, chosen for each label on the validation rows."""

from dataclasses import replace
from typing import Any

from finetune.data.examples import Examples
from finetune.data.loss_families import BINARY, family_of
from finetune.models.output_names import by_output_name
from finetune.results.report.output_facts import LABELS, best_threshold
from finetune.training.predictions import name_of_loss, predict_test_rows, rows_of_outputs


def label_thresholds(model: Any, examples: Examples, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """Returns the threshold with the highest F1 of each label on the validation rows.

    Test rows would not do: figures on them would then be of thresholds that were chosen by them.

    Args:
        model: A compiled model.
        examples: The examples.
        batch_size: Rows in a batch, >= 1.

    Returns:
        The thresholds, by the name of the output and of the label. Empty without validation rows, or where
        rows have a single class; a label that no validation row has is left out.
    """
    losses = by_output_name(model, model.loss).values()
    if examples.validation is None or all(family_of(name_of_loss(loss)) != BINARY for loss in losses):
        return {}
    validation = {f"{part}_test": getattr(examples, f"{part}_validation") for part in ("x", "y", "weights")}
    of_validation = replace(examples, **validation)
    outputs = rows_of_outputs(model, of_validation, predict_test_rows(model, of_validation, batch_size))
    chosen: dict[str, dict[str, float]] = {}
    for name, rows in outputs.items():
        if rows.kind != LABELS or not rows.are_probabilities:
            continue
        best = {
            label: best_threshold(rows.scores[:, place], rows.targets[:, place])["best_threshold"]
            for place, label in enumerate(rows.names)
        }
        chosen[name] = {label: threshold for label, threshold in best.items() if threshold is not None}
    return {name: of_labels for name, of_labels in chosen.items() if of_labels}
