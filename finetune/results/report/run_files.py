"""What a run folder holds, read for a report: plain data, whatever part of a run there is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.results.run_documents import read_of_run, read_rows_of_run
from finetune.results.run_folder import check_holds_run

_ADVICE = "Restore it from a copy, or remove it: the report leaves out what it says."
FORMAT = 1  # of `report.json`
_MOST_ROWS = 200_000  # of `steps.csv`, read at even distances


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder, as far as they are there; empty where they are not.

    Attributes:
        folder: The run folder.
        recipe: The text of `recipe.yaml`.
        result: `result.json`, which a run writes at its end.
        report: `report.json`: what was computed of the test rows.
        plan: `plan.json`.
        restore: `restore.json`.
        data: `data.json`.
        environment: `environment.json`.
        range_test: `plots/lr_range.json`.
        epochs: The rows of `metrics.csv`, as numbers.
        steps: The rows of `steps.csv`, as numbers and names of phases.
    """

    folder: Path
    recipe: str
    result: Mapping[str, Any]
    report: Mapping[str, Any]
    plan: Mapping[str, Any]
    restore: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    range_test: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]
    steps: tuple[Mapping[str, Any], ...]


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Args:
        folder: The run folder; the run may be unfinished, or of an older version that wrote fewer files.

    Raises:
        FinetuneError: It holds no run, or a file of it is damaged.
    """
    check_holds_run(folder, "A report is about a run.")
    names = ("result", "report", "plan", "restore", "data", "environment")
    documents = {name: read_of_run(folder / f"{name}.json", advice=_ADVICE) for name in names}
    if documents["report"].get("format", FORMAT) != FORMAT:
        raise FinetuneError(
            f"`{folder / 'report.json'}` has the format {documents['report']['format']!r}, and this version reads "
            f"{FORMAT}. Use the version of finetune that wrote it."
        )
    return RunFiles(
        folder=folder,
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace"),
        range_test=read_of_run(folder / "plots" / "lr_range.json", advice=_ADVICE),
        epochs=_rows(folder / "metrics.csv"),
        steps=_rows(folder / "steps.csv"),
        **documents,
    )


def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    rows = [{name: _number(value) for name, value in row.items() if name} for row in read_rows_of_run(path)]
    return tuple(rows[:: max(-(-len(rows) // _MOST_ROWS), 1)])


def _number(text: Any) -> Any:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return text or None
    return value if math.isfinite(value) else None
