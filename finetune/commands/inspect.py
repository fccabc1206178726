"""`finetune inspect`: what a file of pretrained weights holds."""

from json import dumps
from pathlib import Path

from finetune.pretrained.listing import list_weights
from finetune.results.file_listing import listing_text


def inspect(path: str | Path, *, json: bool = False) -> str:
    """Returns the name, shape, type and size of every weight in a file, as a table or as JSON.

    Args:
        path: A file, folder or archive of weights, or a checkpoint's prefix.
        json: Whether to return JSON.

    Raises:
        RestoreError: The file cannot be read.
    """
    listing = list_weights(path)  # reads names and shapes, not values; only checkpoints need TensorFlow for that
    return dumps(listing, indent=2) if json else listing_text(listing)
