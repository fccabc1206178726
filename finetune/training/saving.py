"""Saves models and weights so that a full disk is an error, not the end of the process.

HDF5's library may crash when it cannot write. So it writes into memory, and the bytes go to the file in a single write:
saving needs the memory of the file's size beside the model, and of twice that for a whole model.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from math import prod
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.keras_private import save_model_to, weights_in_memory
from finetune.results.formatting import size_text
from finetune.results.run_folder import replacing
from finetune.training.plain_compile import compiled_plainly, plain_compile


def save_weights(model: keras.Model, path: Path, *, optimizer: bool = True) -> None:
    """Writes the weights of a model to a `.weights.h5` file, whole or not at all.

    Args:
        model: The model.
        path: The file.
        optimizer: Whether the file also holds the optimizer's state.

    Raises:
        WriteError: The file cannot be written.
    """
    with nullcontext() if optimizer else _without_optimizer(model):
        content = weights_in_memory(model)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def save_model(model: keras.Model, path: Path) -> tuple[str, ...]:
    """Writes a model to a `.keras` file, whole or not at all.

    Plain Keras then loads it where finetune is not installed, compiled with its loss, its metrics and a plain
    optimizer; see `finetune.training.plain_compile`.

    Returns:
        Sentences about what of the loss and the metrics plain Keras does not have.

    Raises:
        WriteError: The file cannot be written.
    """
    plain = plain_compile(model)
    with replacing(path) as temporary, compiled_plainly(model, plain), temporary.open("wb") as file:
        save_model_to(model, file)
    return plain.sentences


def save_elsewhere(model: keras.Model, name: str) -> Path | None:
    """Saves the weights of a model outside of the run folder: in the folder of temporary files, or the working one.

    Args:
        model: The model.
        name: Begins the name of the file.

    Returns:
        The file; `None` where no place has room.
    """
    content = weights_in_memory(model)
    for place in (tempfile.gettempdir, os.getcwd):  # `gettempdir` raises where no folder can be written to
        with suppress(OSError):
            descriptor, path = tempfile.mkstemp(prefix=f"finetune-{name}-", suffix=".weights.h5", dir=place())
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                os.unlink(path)
                raise
            return Path(path)
    return None


@contextmanager
def _without_optimizer(model: keras.Model) -> Iterator[None]:
    optimizer, model.optimizer, model.compiled = model.optimizer, None, False
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, True


def disk_need(model: keras.Model, epochs: int, *, slots: bool = True, more_checkpoints: int = 0) -> tuple[int, int]:
    """Estimates what a run writes, beside features, for which room is sought when their size is known.

    Args:
        model: A compiled model.
        epochs: Epochs of the run.
        slots: Whether checkpoints hold those of the optimizer.
        more_checkpoints: How many are kept beside the latest.

    Returns:
        The bytes that all files take at most at once, and those of the largest file.
    """
    optimizer: Any = model.optimizer
    weights = sum(_nbytes(variable) for variable in model.variables)
    # Until an optimizer is built its slots are not known; Adam has two for each weight, and few have more.
    of_optimizer = sum(_nbytes(variable) for variable in optimizer.variables) if optimizer.built else 2 * weights
    headers = 2048 * 3 * len(model.variables)  # what HDF5 keeps beside the values, of weights and slots, about
    checkpoint = weights + of_optimizer * slots + headers
    # A new file is written while the former are still there: two of `last.weights.h5`, three to go on from. And
    # `model.keras` takes no more than the weights.
    return (
        5 + more_checkpoints
    ) * checkpoint + 2**19 + 1024 * epochs, checkpoint  # beside them plan, plots, and the logs of each epoch


def memory_advice(model: keras.Model, *, available: int) -> str:
    """Returns a sentence where saving needs more memory than there is; else nothing.

    Args:
        model: A compiled model.
        available: The bytes of memory that are available.
    """
    _, needed = disk_need(model, 0)  # the file is made in memory
    if needed <= available:
        return ""
    return (
        f"saving takes {size_text(needed)} of memory beside the model, and {size_text(available)} are available, so a "
        "run may end at its first checkpoint. Use a smaller model, an optimizer with fewer slots, or a machine with "
        "more memory."
    )


def _nbytes(variable: Any) -> int:
    return prod(variable.shape) * tf.as_dtype(variable.dtype).size
