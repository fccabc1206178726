"""What a run adds at its end: predictions of the test rows, the page that is made of all its files, and their hashes.

None of it is part of the training: whatever goes wrong with it is told, and fails no run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from finetune.build.layout import Layout
from finetune.commands.report import write_report
from finetune.data.examples import files_of_rows
from finetune.errors import FinetuneError, reason
from finetune.recipe.named_files import files_of
from finetune.results.hashes import write_hashes
from finetune.results.run_folder import replacing, write_json
from finetune.training.predictions import Predictions, predict_test_rows
from finetune.training.rehearsal import EVALUATED_ROWS, peak_memory
from finetune.training.report_facts import report_facts


def predicted(layout: Layout, console: Console) -> Predictions | None:
    """Predicts the test rows; `None` where the network does not, which is told.

    Args:
        layout: The layout of the run, whose model is trained.
        console: Where to tell.
    """
    with _told("The results of classes and the report are without predictions", console):
        return predict_test_rows(layout.model, layout.examples, EVALUATED_ROWS)
    return None


def write_facts(folder: Path, layout: Layout, predictions: Predictions | None, console: Console) -> None:
    """Writes `report.json` and `predictions.npz`: all that a report needs the network for.

    Args:
        folder: The run folder.
        layout: The layout of the run, whose model is trained.
        predictions: What it answers to the test rows.
        console: Where to tell what fails.
    """
    written = layout.recipe.report
    if not written.page or predictions is None:
        return
    with _told("The report is without what the run would have computed for it", console):
        facts, arrays = report_facts(
            layout.model,
            layout.examples,
            predictions,
            seed=layout.recipe.seed,
            shows_inputs=written.examples,
        )
        facts |= {"peak_bytes": peak_memory(), "allowed_code": list(layout.recipe.allowed_code or ())}
        write_json(folder / "report.json", facts)
        with replacing(folder / "predictions.npz") as temporary, temporary.open("wb") as file:
            compressed: Any = np.savez_compressed
            compressed(file, **arrays)


def write_page(folder: Path, layout: Layout, console: Console) -> None:
    """Writes `report.html` and `model_card.md` from the files of a finished run.

    Args:
        folder: The run folder.
        layout: The layout of the run.
        console: Where to tell what fails.
    """
    if layout.recipe.report.page:
        with _told("The report is not written", console):
            console.print(f"report: {write_report(folder)}", highlight=False, markup=False)


def write_run_hashes(folder: Path, layout: Layout, console: Console, **options: Any) -> None:
    """Writes `hashes.json` of a run whose other files are all written.

    Args:
        folder: The run folder.
        layout: The layout of the run.
        console: Where to tell what fails.
        options: The options of the command, which are not in the recipe.
    """
    with _told("`finetune audit` cannot check this run: its hashes are not written", console):
        inside = folder.absolute()
        read = files_of(layout.recipe) | set(files_of_rows(layout.examples))
        outside = (path for path in read if not path.absolute().is_relative_to(inside))
        kept = layout.recipe.train.keep_checkpoints is not False
        write_hashes(folder, options, outside, removed=() if kept else (folder / "checkpoints").rglob("*.safetensors"))


@contextmanager
def _told(what: str, console: Console) -> Iterator[None]:
    """Tells of whatever fails in the block, instead of failing the run; signals pass."""
    try:
        yield
    except Exception as error:  # networks and losses of the user's own may raise anything, and disks are full
        text = str(error) if isinstance(error, FinetuneError) else f"{type(error).__name__}: {reason(error)}"
        console.print(f"warning: {what}. {text}", highlight=False, markup=False)
