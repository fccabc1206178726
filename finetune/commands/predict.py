"""`finetune predict`: raw rows in, a line of JSON or CSV for each out."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from finetune.errors import DataError, FinetuneError, printable, quote
from finetune.inference.answers import flat
from finetune.inference.fine_tuned import Prediction, load
from finetune.inference.record import FORMATS
from finetune.results.run_folder import replacing


def predict(
    run: str | Path,
    inputs: Sequence[str | Path],
    *,
    out: Path | None = None,
    format: str | None = None,
    top: int = 3,
    threshold: float | None = None,
    on_error: str = "stop",
    batch_size: int | None = None,
    checkpoint: str | None = None,
    allow_code: Sequence[str] = (),
    console: Console | None = None,
    streams: tuple[TextIO, TextIO] | None = None,
) -> int:
    """Writes what the model of a run says of raw rows, in their order, and returns how many could not be read.

    Args:
        run: The run folder.
        inputs: Files, folders, tables and NumPy files; `-` reads standard input.
        out: The file to write; by default standard output.
        format: `jsonl` or `csv`; by default what the ending of `out` says, or `jsonl`.
        top: How many classes are listed, >= 1.
        threshold: Probability from which a row has a label; by default what the run chose, or 0.5.
        on_error: `stop` at a row that cannot be read, or `skip` it, with a line that says why.
        batch_size: Rows that the model takes at once, >= 1; by default what `FineTuned.read` says.
        checkpoint: Which weights, as `load` takes it; by default those of the end.
        allow_code: Code in the model that may run, as `load` takes it.
        console: Where to print the progress; `None` prints nothing.
        streams: What standard input and output are; by default those of the process.

    Raises:
        FinetuneError: There is no finished run, or rows do not fit its model. A file that was begun is not left behind.
    """
    format = _format(format, out)
    source, sink = streams or (sys.stdin, sys.stdout)
    fine_tuned = load(run, checkpoint=checkpoint, allow_code=allow_code)
    if console and fine_tuned.weights:
        console.print(f"the weights {printable(fine_tuned.weights)}", markup=False, highlight=False)
    without_rows: list[str] = []
    chunks = fine_tuned.read(inputs, size=batch_size, lines=source, without_rows=without_rows)
    every = fine_tuned.predictions(chunks, top=top, threshold=threshold, skip=on_error == "skip")
    problems: list[Prediction] = []
    count = 0
    with _opened(out, sink) as file, _progress(console if out else None) as advance:
        write = _writer(file, format, nested=len(fine_tuned.record.outputs) > 1)
        for prediction in every:
            count += 1
            write(prediction)
            problems += [prediction] if prediction.problem else []
            advance()
        if not count:
            raise FinetuneError(f"There must be a row to predict. Received none, from {quote(inputs)}.")
        if len(problems) == count:
            raise DataError(f"None of the {count:,} rows can be read. The first: {problems[0].problem}")
    if console and without_rows:
        console.print(f"warning: no rows in {quote(without_rows)}", markup=False, highlight=False)
    if console and problems:
        shown = ", ".join(f"`{each.place}`" for each in problems[:5])
        more = f" and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        console.print(
            f"warning: {len(problems):,} of {count:,} rows cannot be read: {shown}{more}", markup=False, highlight=False
        )
    if console and out:
        console.print(f"{count:,} row{'s' if count > 1 else ''} in `{out}`", markup=False, highlight=False)
    return len(problems)


def _format(written: str | None, out: Path | None) -> str:
    ending = out.suffix.lower().lstrip(".") if out else ""
    chosen = written or {"csv": "csv", "json": "jsonl"}.get(ending, "jsonl")
    if chosen not in FORMATS:
        raise FinetuneError(f"Predictions are written as {quote(FORMATS)}. Received: `{chosen}`.")
    return chosen


@contextmanager
def _opened(out: Path | None, sink: TextIO) -> Iterator[TextIO]:
    if out is None:
        yield sink
        return
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file


def _writer(file: TextIO, format: str, *, nested: bool) -> Any:
    """Returns the function that writes a prediction as a line; `nested` says that answers are by outputs."""
    if format == "jsonl":

        def write(each: Prediction) -> None:
            problem = {"error": each.problem} if each.problem else {}
            file.write(json.dumps({"input": each.place, **each.answer, **problem}, ensure_ascii=False) + "\n")

        return write
    columns: list[str] = []
    waiting: list[dict[str, Any]] = []  # rows that cannot be read, before the first that says which columns there are

    def write_row(each: Prediction) -> None:
        cells: dict[str, Any] = {"input": each.place}
        for name, answer in (each.answer if nested else {"": each.answer}).items():
            cells |= flat(answer, f"{name}/" if name else "")
        waiting.append(cells | {"error": each.problem})
        if each.problem and not columns:
            return
        writer = csv.writer(file)
        if not columns:
            columns.extend([*cells, "error"])
            writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in waiting)
        waiting.clear()

    return write_row


@contextmanager
def _progress(console: Console | None) -> Iterator[Any]:
    if console is None:
        yield lambda: None
        return
    columns = (TextColumn("{task.completed:,.0f} rows"), TextColumn("{task.speed} rows/s"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda: progress.advance(task)
