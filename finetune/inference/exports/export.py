"""An export of a run: written, opened in a new process, compared with the run on raw rows, and only then put in place.

`export` is the story. A format is a module with a function that writes it; `formats.FORMATS` lists them.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.examples import Examples
from finetune.errors import FinetuneError, quote
from finetune.files.temporary_folders import temporary_folder
from finetune.inference.answers import probabilities_of
from finetune.inference.exports.compared_rows import ComparedRows, arrays_for, compared_rows_of, tabled_rows
from finetune.inference.exports.conversion import Job, Written
from finetune.inference.exports.formats import FORMATS, check_export
from finetune.inference.exports.fresh_process import answers_of_fresh_process
from finetune.inference.exports.raw_graph import answer_prefix
from finetune.inference.exports.scores import SCORED_ROWS, score, targets_of
from finetune.inference.exports.text_graph import COMPARED_TEXTS
from finetune.inference.fine_tuned import FineTuned
from finetune.inference.raw_rows import RawRows
from finetune.models.hub_export import check_exportable
from finetune.models.output_names import by_output_name, of_output
from finetune.results.run_folder import DATA_FOLDER, write_json

TOLERANCE = 1e-5
SIDE_FILE = "export.json"


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        format: The format.
        folder: The folder that was written.
        file: The file in it to open; the folder itself for a SavedModel.
        inputs: What it takes: name, type, shape, column and meaning of each input.
        rows: How many rows it was compared on.
        compared_on: What they are.
        difference: The largest difference between its answers and those of the run.
        outside: What it does not do, as sentences.
        scores: With `quantize`: the figures of the run and of the export on the test rows.
        imports: Modules that a program imports before it opens the export, as they have its operations.
    """

    format: str
    folder: Path
    file: Path
    inputs: tuple[dict[str, Any], ...]
    rows: int
    compared_on: str
    difference: float
    outside: tuple[str, ...] = ()
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


def export(
    fine_tuned: FineTuned,
    format: str,
    out: str | Path,
    *,
    quantize: str | None = None,
    data: Sequence[str | Path] = (),
    allow_code: Sequence[str] = (),
) -> Export:
    """Exports a run; see `FineTuned.export`.

    Args:
        fine_tuned: The run.
        format: `savedmodel`, `hub`, `keras`, `litert`, `onnx` or `safetensors`.
        out: The folder to write. Must not exist, or be empty.
        quantize: For `litert`: `int8` or `float16`.
        data: Raw rows to compare on; by default those of the test split.
        allow_code: Code that the recipe names and that may run, to make its rows.

    Raises:
        FinetuneError: As `check_export` does; or the network cannot be converted, or its answers differ.
    """
    out = Path(out)
    check_export(format, out, quantize)
    module = import_module(f"finetune.inference.exports.{FORMATS[format][0]}")
    check_exportable(fine_tuned.model)
    examples = _examples(fine_tuned, allow_code, required=bool(quantize), data=data)
    compared = compared_rows_of(fine_tuned, examples, data)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.absolute().parent, ".exporting-") as folder:
        rows = tabled_rows(fine_tuned, COMPARED_TEXTS) if format == "savedmodel" else None
        job = Job(fine_tuned.record, fine_tuned.model, folder, quantize, rows or compared.rows)
        written: Written = getattr(module, FORMATS[format][1])(job)
        file = folder / written.file
        difference = _difference(fine_tuned, format, file, written, compared, quantized=bool(quantize))
        scores = _scores(fine_tuned, format, file, written, examples) if quantize and examples else {}
        export = Export(
            format,
            out,
            out / written.file,
            tuple(_described(each) for each in written.inputs),
            len(compared.rows),
            compared.name,
            difference,
            tuple(written.outside),
            scores,
            tuple(written.imports),
        )
        _write_side_files(fine_tuned, export, written, folder)
        folder.chmod(0o755)  # a temporary folder is the user's alone
        os.replace(folder, out)
    return export


def _examples(
    fine_tuned: FineTuned, allow_code: Sequence[str], *, required: bool, data: Sequence[str | Path]
) -> Examples | None:
    """Returns the rows of the run's recipe; `None` where they are not here and need not be."""
    if data and not required:
        return None
    from finetune.inference.evaluation import own_examples

    try:
        return own_examples(fine_tuned, "test", allow_code=allow_code)
    except FinetuneError:
        if required or not data:
            raise
        return None


def _difference(
    fine_tuned: FineTuned, format: str, file: Path, written: Written, compared: ComparedRows, *, quantized: bool
) -> float:
    """Returns the largest difference between the answers of an export and those of the run.

    Raises:
        FinetuneError: It is larger than the tolerance, where the export is not quantized.
    """
    if format == "safetensors":
        answers = answers_of_fresh_process(format, file, {})
        expected = {leaf.name: np.asarray(leaf.variable) for leaf in _leaves(fine_tuned)}
    else:
        arrays = arrays_for(written.inputs, fine_tuned, compared.rows)
        answers = answers_of_fresh_process(format, file, arrays, written.imports)
        expected = expected_answers(fine_tuned, compared.rows)
    absent = [name for name in expected if name not in answers]
    if absent:
        raise FinetuneError(f"An export gives all answers. `{format}` gives no {quote(absent)}.")
    differences = {name: _largest(answers[name], expected[name]) for name in expected}
    largest = max(differences.values(), default=0.0)
    if not quantized and not largest <= TOLERANCE:
        name = max(differences, key=lambda each: differences[each])
        raise FinetuneError(
            f"An export answers as the run does, with a difference of {TOLERANCE:g} at most. `{format}` differs by "
            f"{largest:.3g} in `{name}`, on {len(compared.rows)} {compared.name}. Nothing was written."
        )
    return largest


def _largest(answers: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to values above 1."""
    if answers.size != expected.size:
        return float("inf")
    answers = answers.reshape(expected.shape).astype(np.float64)
    differences = np.abs(answers - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.max(differences, initial=0.0))


def _leaves(fine_tuned: FineTuned) -> Any:
    from finetune.groups.layer_tree import layer_tree

    return layer_tree(fine_tuned.model).leaves


def expected_answers(fine_tuned: FineTuned, rows: RawRows) -> dict[str, np.ndarray]:
    """Returns the answers of the run, as `raw_graph.answers_in_graph` names them: `probabilities` or `values`.

    Args:
        fine_tuned: The run.
        rows: Raw rows.
    """
    outputs = by_output_name(fine_tuned.model, fine_tuned.model.predict_on_batch(fine_tuned.prepare(rows)))
    expected = {}
    for each in fine_tuned.record.outputs:
        values = np.asarray(of_output(outputs, each.name))
        prefix = answer_prefix(each)
        if each.kind == "numbers" or values.ndim > 2:
            expected[f"{prefix}values"] = values.astype(np.float64)
        else:
            expected[f"{prefix}probabilities"] = probabilities_of(each, values)
    return expected


def _scores(
    fine_tuned: FineTuned, format: str, file: Path, written: Written, examples: Examples
) -> dict[str, dict[str, float]]:
    """Returns the figures of the run and of an export on test rows."""
    x, y = examples.test.first(SCORED_ROWS)
    outputs = by_output_name(fine_tuned.model, fine_tuned.model.predict_on_batch(x))
    prepared = x if isinstance(x, dict) else {"": x}
    arrays = {each.name: np.asarray(prepared[each.column]) for each in written.inputs}
    answers = answers_of_fresh_process(format, file, arrays)
    scores: dict[str, dict[str, float]] = {"run": {}, "export": {}}
    for each in fine_tuned.record.outputs:
        targets, prefix = targets_of(fine_tuned, each, y), answer_prefix(each)
        values = np.asarray(of_output(outputs, each.name))
        is_number = each.kind == "numbers" or values.ndim > 2
        of_run = values if is_number else probabilities_of(each, values)
        of_export = answers[f"{prefix}{'values' if is_number else 'probabilities'}"]
        for name, given in (("run", of_run), ("export", of_export)):
            scores[name] |= {f"{prefix}{key}": value for key, value in score(each, given, targets).items()}
    return scores


def _described(each: Any) -> dict[str, Any]:
    about = {"name": each.name, "dtype": each.spec.dtype.name, "shape": list(each.spec.shape), "meaning": each.meaning}
    return about | ({"column": each.column} if each.column else {})


def _write_side_files(fine_tuned: FineTuned, export: Export, written: Written, folder: Path) -> None:
    """Writes `export.json`, and beside it the files that inputs are made with outside of the export."""
    record = fine_tuned.record
    about = {
        name: value
        for name, value in asdict(export).items()
        if name not in ("folder", "file") and value not in ({}, ())
    }
    about |= {"file": written.file} | written.more
    about["classes"] = {each.name or "output": list(each.names) for each in record.outputs if each.kind != "numbers"}
    about["preparation"] = [
        {"input": each.name, "kind": each.kind, "columns": list(each.columns), "fitted": _relative(dict(each.fitted))}
        for each in record.inputs
    ]
    write_json(folder / SIDE_FILE, about)
    if export.outside and (record.folder / DATA_FOLDER).is_dir():
        shutil.copytree(record.folder / DATA_FOLDER, folder / DATA_FOLDER)


def _relative(fitted: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without paths of the machine that trained."""
    kept = {name: value for name, value in fitted.items() if name not in ("warnings", "skipped", "folder", "kind")}
    with suppress(KeyError, TypeError):
        kept["tokenizer"] = f"{DATA_FOLDER}/{Path(kept['tokenizer']).name}"
    return kept
