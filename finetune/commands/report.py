"""`finetune report`: a page and a model card of a run, from the files in its folder, without TensorFlow."""

from pathlib import Path

from finetune.results.hashes import write_hashes_again
from finetune.results.report.model_card import model_card
from finetune.results.report.page import report_page
from finetune.results.report.run_files import read_run
from finetune.results.run_folder import write_text


def write_report(folder: str | Path) -> Path:
    """Writes `report.html`, and of a finished run `model_card.md`.

    Args:
        folder: The run folder.

    Returns:
        The page.

    Raises:
        FinetuneError: The folder holds no run, or a file of it is damaged.
        WriteError: A file cannot be written.
    """
    run = read_run(Path(folder))
    page = run.folder / "report.html"
    write_text(page, report_page(run))
    if run.result:
        write_text(run.folder / "model_card.md", model_card(run))
        write_hashes_again(run.folder, ("report.html", "model_card.md"))
    return page
