"""`finetune inspect`: what a file of pretrained weights, or a run folder, holds."""

from json import dumps
from pathlib import Path

from finetune.pretrained.listing import list_weights
from finetune.results.file_listing import listing_text
from finetune.results.run_folder import is_run
from finetune.results.run_listing import list_run, run_text


def inspect(path: str | Path, *, json: bool = False) -> str:
    """Returns the name, shape, type and size of every weight in a file, or what a run holds, as text or as JSON.

    Args:
        path: A file, folder or archive of weights, or a checkpoint's prefix; or a run folder.
        json: Whether to return JSON.

    Raises:
        RestoreError: The file cannot be read.
    """
    if is_run(Path(path)):
        of_run = list_run(Path(path))
        return dumps(of_run, indent=2, ensure_ascii=False) if json else run_text(Path(path), of_run)
    listing = list_weights(path)  # reads names and shapes, not values; only checkpoints need TensorFlow for that
    return dumps(listing, indent=2) if json else listing_text(listing)
