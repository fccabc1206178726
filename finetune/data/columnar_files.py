"""Reads Parquet and Feather files within the limits for small files that hold much.

Both keep repeated values once, so a file of a kilobyte may be a table of gigabytes: what is not as long as its type
says is unpacked a few thousand rows at a time. Columns stay as Arrow holds them
until they are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, FinetuneError, quote
from finetune.files.size_limits import check_size
from finetune.machine_failures import raise_machine_failure

PARQUET_ENDINGS = (".parquet", ".pq")
_ROWS = 4096  # that are unpacked at a time
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2  # kinds of messages in Arrow's format


def read_columnar(path: Path) -> Mapping[str, Any]:
    """Returns the columns of a Parquet or Feather file by name, as `pyarrow.ChunkedArray`s.

    Raises:
        DataError: The file cannot be read, or pyarrow is not installed.
        FinetuneError: It holds far more than its size.
    """
    columns: dict[str, list[Any]] = {}
    held = 0
    with _readable(path) as pa:
        file_bytes = path.stat().st_size
        for batch in _parquet_columns(path) if path.suffix.lower() in PARQUET_ENDINGS else _feather(path):
            _check_names(path, batch.schema.names)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                parts = columns.setdefault(name, [])
                if not isinstance(column, pa.DictionaryArray):  # its memory is taken, and below the limit of the file
                    held += column.nbytes
                    parts.append(column)
                    continue
                for part in _decoded(column):
                    held += part.nbytes
                    check_size(path, held, file_bytes=file_bytes)
                    parts.append(part)
            check_size(path, held, file_bytes=file_bytes)
        return {name: pa.chunked_array(parts) for name, parts in columns.items()}


def columnar_batches(path: Path) -> Iterator[tuple[Sequence[str], list[list[Any]], int]]:
    """Yields rows of a Parquet or Feather file, some at a time: names, values of each column, and their bytes.

    The values are Python's objects.

    Raises:
        DataError: The file cannot be read, or pyarrow is not installed.
        FinetuneError: It holds far more than its size.
    """
    with _readable(path):
        for batch in _parquet(path) if path.suffix.lower() in PARQUET_ENDINGS else _feather(path):
            _check_names(path, batch.schema.names)
            for start in range(0, batch.num_rows or 1, _ROWS):
                parts = [next(_decoded(column)) for column in batch.slice(start, _ROWS).columns]
                size = sum(part.nbytes for part in parts)
                check_size(path, size)
                yield batch.schema.names, [part.to_pylist() for part in parts], size


@contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """Gives `pyarrow`, and what it raises over a file as errors that name it."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(
            f"`{path.suffix}` files are read by pyarrow, which is not installed. Install it: "
            "`pip install 'discriminative-finetune[tables]'`."
        ) from error
    try:
        yield pa
    except FinetuneError:
        raise
    except Exception as error:  # pyarrow raises errors of many classes over damaged files
        raise_machine_failure(error, f"Reading `{path}`")
        raise DataError(f"`{path}` cannot be read as a table: {error}.") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"Every column needs a name of its own. In `{path}` these occur twice: {quote(twice)}.")


def _decoded(column: Any) -> Iterator[Any]:
    """Yields a column; of one that points to the values of a dictionary, these values, of some rows at a time."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        yield column
        return
    for start in range(0, len(column) or 1, _ROWS):
        yield column.slice(start, _ROWS).dictionary_decode()


def _parquet(path: Path) -> Iterator[Any]:
    with _open_parquet(path) as file:
        yield _no_rows(file.schema_arrow)
        yield from file.iter_batches(_ROWS)


def _parquet_columns(path: Path) -> Iterator[Any]:
    """Yields parts of some columns: those of numbers at once, since the number of rows says what they take."""
    from pyarrow import types

    with _open_parquet(path) as file:
        schema = file.schema_arrow
        yield _no_rows(schema)
        numbers = [field.name for field in schema if types.is_primitive(field.type)]
        others = [name for name in schema.names if name not in set(numbers)]
        # A name such as `a` also chooses `a.b`, hence `select`.
        for group in range(file.num_row_groups if numbers else 0):
            yield from file.read_row_group(group, columns=numbers).select(numbers).to_batches()
        for batch in file.iter_batches(_ROWS, columns=others) if others else ():
            yield batch.select(others)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        about = file.metadata
        groups = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        check_size(path, max(groups, 8 * about.num_rows * about.num_columns))
        yield file


def _feather(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import feather

    with path.open("rb") as file:
        is_arrow = file.read(6) == b"ARROW1"
    if not is_arrow:  # the first version of the format, which compresses nothing
        yield from feather.read_table(path).to_batches()
        return
    with pa.memory_map(str(path)) as source:  # one map for both: each page is read once
        check_size(path, _unpacked_bytes(source))
        with pa.ipc.open_file(source) as file:
            yield _no_rows(file.schema)
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                check_size(path, 8 * batch.num_rows * batch.num_columns)
                yield batch


def _no_rows(schema: Any) -> Any:
    """Returns a batch that names the columns, which a table without rows has, too."""
    import pyarrow as pa

    return pa.record_batch([pa.nulls(0, field.type) for field in schema], schema=schema)


def _unpacked_bytes(source: Any) -> int:
    """Returns what the compressed buffers of an Arrow file unpack to; each begins with that number, in 8 bytes."""
    import pyarrow as pa
    from flatbuffers.table import Table

    held = 0
    source.seek(8)
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return held
        data = message.metadata.to_pybytes()
        table = Table(data, int.from_bytes(data[:4], "little"))
        kind = data[table.Pos + table.Offset(6)] if table.Offset(6) else 0
        if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
            continue
        batch = Table(data, table.Indirect(table.Pos + table.Offset(8)))
        if kind == _DICTIONARY_BATCH:
            batch = Table(data, batch.Indirect(batch.Pos + batch.Offset(6)))
        if not batch.Offset(10) or not batch.Offset(8):  # not compressed, or without buffers
            continue
        first = batch.Vector(batch.Offset(8))
        places = np.frombuffer(data, "<i8", 2 * batch.VectorLen(batch.Offset(8)), first).reshape(-1, 2)
        body = memoryview(message.body or b"")
        for offset in places[places[:, 1] >= 8, 0].tolist():
            held += max(0, int.from_bytes(body[offset : offset + 8], "little", signed=True))
