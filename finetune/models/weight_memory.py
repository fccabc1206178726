"""Refuses a network before memory is taken for its weights, where they take more than they may.

A file of a few kilobytes, or a number in a recipe, may ask for a layer of any size. Nothing but Keras knows what a
network asks for, so each variable is checked when its shape is known and before it has values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.available_memory import available_memory
from finetune.errors import FinetuneError, printable
from finetune.files.size_limits import check_size
from finetune.keras_private import before_variables
from finetune.results.formatting import size_text


@contextmanager
def limited_to_file(path: Path) -> Iterator[None]:
    """Checks that a network made in the block has no more weights than its file may hold.

    Args:
        path: The file, or the folder, that describes the network and has its weights.

    Raises:
        FinetuneError: As `finetune.files.size_limits.check_size`.
    """
    files = filter(Path.is_file, path.rglob("*")) if path.is_dir() else (path,)
    file_bytes = sum(file.stat().st_size for file in files)
    with _checked(lambda _, total: check_size(path, total, file_bytes=file_bytes)):
        yield


@contextmanager
def limited_to_memory() -> Iterator[None]:
    """Checks that the weights of a network made in the block fit into the memory that is available at its begin.

    Raises:
        FinetuneError: They do not.
    """
    available = available_memory()

    def check(variable: Any, total: int) -> None:
        if total > available:
            raise FinetuneError(
                f"The weights of a network must fit into memory. With `{printable(variable.path)}` of shape "
                f"`{tuple(variable.shape)}` they take {size_text(total)}, and {size_text(available)} are available. "
                "Choose smaller sizes, or a machine with more memory."
            )

    with _checked(check):
        yield


@contextmanager
def _checked(check: Callable[[Any, int], None]) -> Iterator[None]:
    """Calls `check(variable, bytes of all variables so far)`; what it raises leaves the block as it is."""
    total, refusal = 0, None

    def add(variable: Any) -> None:
        nonlocal total, refusal
        total += prod(variable.shape) * tf.as_dtype(variable.dtype).size
        try:
            check(variable, total)
        except FinetuneError as error:
            refusal = error
            raise

    try:
        with before_variables(add):
            yield
    except Exception:  # Keras, and functions of the user, wrap the refusal into errors of their own
        if refusal is None:
            raise
        raise refusal from None
