"""What a report says of the test rows and needs the network for: computed once, at the end of a run, as plain data."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.examples import Examples, leaves
from finetune.results.report.inputs import shown_input, text_at
from finetune.results.report.output_facts import OutputRows, facts_of, worst_rows
from finetune.results.report.run_files import FORMAT
from finetune.training.intervals import intervals_of_metrics
from finetune.training.predictions import Predictions, rows_of_outputs

_MOST_VALUES = 2**22  # of `predictions.npz`: 16 MB


def report_facts(
    model: Any, examples: Examples, predictions: Predictions, *, seed: int, shows_inputs: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what `report.json` and `predictions.npz` hold.

    Args:
        model: The compiled model. Its metrics are reset.
        examples: The examples.
        predictions: What it answers to the test rows.
        seed: Seeds the draws of the intervals.
        shows_inputs: Whether the inputs of the worst rows are among the facts.

    Returns:
        Plain data; and arrays by name: `rows`, and of each output `targets`, `scores`, their names, and
        the `threshold` of labels.
    """
    outputs = rows_of_outputs(model, examples, predictions)
    facts: dict[str, Any] = {"format": FORMAT, "rows": len(predictions.rows), "is_all": predictions.is_all}
    facts["test_rows"] = _hash_of_rows(examples, predictions)
    facts["outputs"] = {}
    for name, rows in outputs.items():
        worst = worst_rows(rows)
        for row in worst:
            row["row"] = int(predictions.rows[row["row"]])
        facts["outputs"][name] = facts_of(rows) | {"worst": _with_places(worst, examples, shows_inputs)}
    facts["about"] = f"{model.name}, {model.count_params():,} parameters"
    facts["intervals"] = intervals_of_metrics(model, predictions, seed=seed)
    return facts, _arrays(outputs, predictions)


def _hash_of_rows(examples: Examples, predictions: Predictions) -> str:
    """Returns a hash by which two runs know that they were tested on the same rows."""
    digest = hashlib.sha256(predictions.rows.tobytes())
    places = examples.places.get("test", ())
    for place in places:  # says which row it is, whatever the network takes of it
        digest.update(f"{place}\n".encode())
    for part in ("y",) if places else ("y", "x"):
        for name, array in leaves(part, getattr(examples, f"{part}_test")):
            known = array.tobytes() if isinstance(array, np.ndarray) else getattr(array, "fingerprint", "").encode()
            digest.update(f"{name} {len(known)}\n".encode() + known)
    return digest.hexdigest()


def _with_places(worst: Sequence[dict[str, Any]], examples: Examples, shows_inputs: bool) -> list[dict[str, Any]]:
    places = examples.places.get("test", ())
    texts = [str(places[row["row"]]) if row["row"] < len(places) else "" for row in worst]
    if not shows_inputs:
        return [row | {"place": place} for row, place in zip(worst, texts, strict=True)]
    split = examples.test.select(np.array([row["row"] for row in worst], np.int64)) if worst else None
    inputs = dict(leaves("", split.first(len(worst))[0])) if split else {}
    shown = []
    for number, (row, place) in enumerate(zip(worst, texts, strict=True)):
        text = text_at(place, examples.source.get("files") or examples.source.get("file"))
        values = {name: shown_input(_row(array, number)) for name, array in inputs.items()}
        # The line of the table, where there is one, instead of the numbers that were made of it.
        values = {n: of for n, of in values.items() if "values" not in of} | {"": {"text": text}} if text else values
        shown.append(row | {"place": place, "inputs": values})
    return shown


def _row(array: Any, number: int) -> np.ndarray:
    """Returns a row of a tensor or array; of a sparse or ragged tensor, the values that are there."""
    array = tf.sparse.to_dense(array) if isinstance(array, tf.SparseTensor) else array
    return np.asarray(array[number])


def _arrays(outputs: Mapping[str, OutputRows], predictions: Predictions) -> dict[str, np.ndarray]:
    """Returns targets and scores, of evenly spaced rows where all would be too many."""
    width = sum(rows.scores.shape[1] for rows in outputs.values())
    most = max(_MOST_VALUES // max(width, 1), 1)
    count = len(predictions.rows)
    chosen = np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)
    arrays = {"rows": predictions.rows[chosen]}
    for name, rows in outputs.items():
        prefix = f"{name}/" if name else ""
        arrays |= {f"{prefix}targets": rows.targets[chosen], f"{prefix}scores": rows.scores[chosen].astype(np.float32)}
        arrays[f"{prefix}threshold"] = np.array(rows.threshold)
        arrays |= {f"{prefix}names": np.array(rows.names, dtype=np.str_), f"{prefix}kind": np.array(rows.kind)}
    return arrays
