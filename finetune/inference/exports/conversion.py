"""What the writers of all formats are given and say, and the error of a network that a format cannot express."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from finetune.errors import FinetuneError, quote, reason
from finetune.inference.exports.raw_graph import GraphInput
from finetune.inference.raw_rows import RawRows
from finetune.inference.record import RunRecord

_NAMES = (
    re.compile(r"op is neither a custom op nor a flex op.*?\btf\.(\w+)", re.S),
    re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op"),
    re.compile(r"Tensorflow op \[[^:\]]+: (\w+)\] is not supported"),
    re.compile(r"(?:Flex|TF Select) ops: ((?:\w+(?:, )?)+)"),
)


@dataclass(frozen=True, eq=False)
class Job:
    """An export.

    Attributes:
        record: What the run says.
        model: Its model.
        folder: The folder to write to, which exists and is empty.
        quantize: `int8`, `float16`, or `None`.
        rows: Raw rows that a graph must prepare as the run does; without them it takes token ids.
    """

    record: RunRecord
    model: keras.Model
    folder: Path
    quantize: str | None = None
    rows: RawRows | None = None


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        file: The file to open, relative to the folder; `.` for the folder itself.
        inputs: What it takes.
        outside: What it does not do, as sentences; usually empty.
        more: What else `export.json` says.
        imports: Modules that a program has to import before it opens the file, since they have its operations.
    """

    file: str
    inputs: Sequence[GraphInput]
    outside: Sequence[str] = ()
    more: dict[str, Any] = field(default_factory=dict)
    imports: Sequence[str] = ()


@contextmanager
def quiet_converter() -> Iterator[None]:
    """Keeps converters from writing pages about what their errors say again: through `logging`, and from C++."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    levels = [each.level for each in loggers]
    sys.stderr.flush()
    descriptor, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        os.close(nowhere)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def not_converted(format: str, model: keras.Model, problem: BaseException | Sequence[str]) -> FinetuneError:
    """Returns the error of a network that cannot be converted.

    Args:
        format: The format, as a user calls it.
        model: The model.
        problem: What the converter has raised, or the operations that it left as they were.
    """
    if isinstance(problem, BaseException):
        text = str(problem)
        matches = [name for pattern in _NAMES for match in pattern.findall(text) for name in match.split(", ")]
        operations = list(dict.fromkeys(matches))
        said = "" if operations else f" The converter says: {reason(problem)}."
    else:
        operations, said = list(dict.fromkeys(problem)), ""
    which = f"{format} has no {quote(operations)}" if operations else f"it cannot be converted to {format}"
    return FinetuneError(
        f"All operations of a network must exist in the format. `{model.name}`: {which}.{said} Export it as "
        "`savedmodel`, or put other layers in place of those that need the operation."
    )
