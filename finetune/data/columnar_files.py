"""Reads Parquet and Feather files within the limits for small files that hold much.

Both keep repeated values once, so a file of a kilobyte may be a table of gigabytes: what is not as long as its type
says is unpacked a few thousand rows at a time. A column is read when it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


class ColumnarFile(Mapping[str, Any]):
    """The columns of a Parquet or Feather file by name, as `pyarrow.ChunkedArray`s; each is read when it is asked for.

    Nothing is kept: a table that is larger than memory is used column by column.

    Args:
        path: The file.
        names: Its columns.
        rows: Its number of rows.
        read: Returns the parts of a column by its name, each at most as long as may be unpacked at a time.
    """

    def __init__(self, path: Path, names: Sequence[str], rows: int, read: Callable[[str], Iterator[Any]]):
        _check_names(path, names)
        self.path, self.rows = path, rows
        self._names, self._read = dict.fromkeys(names), read
        self._stat = _stat(path)
        self._held: dict[str, int] = {}  # bytes of each column that was read: together they have the limit of the file

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        with _readable(self.path) as pa:
            if _stat(self.path) != self._stat:
                raise DataError(f"A table stays as it is while it is read. `{self.path}` has changed. Start again.")
            parts, before = [], sum(size for other, size in self._held.items() if other != name)
            self._held[name] = 0
            for part in self._read(name):
                for decoded in _decoded(part):
                    self._held[name] += decoded.nbytes
                    check_size(self.path, before + self._held[name], file_bytes=self._stat[0])
                    parts.append(decoded)
            return pa.chunked_array(parts)

    def __contains__(self, name: object) -> bool:  # without reading the column
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_columnar(path: Path) -> ColumnarFile:
    """Opens a Parquet or Feather file.

    Raises:
        DataError: The file cannot be read, or pyarrow is not installed.
        FinetuneError: It holds far more than its size.
    """
    with _readable(path):
        return (_open_parquet_columns if path.suffix.lower() in PARQUET_ENDINGS else _open_feather_columns)(path)


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


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


def _open_parquet_columns(path: Path) -> ColumnarFile:
    from pyarrow import parquet, types

    with _open_parquet(path) as file:
        about, schema = file.metadata, file.schema_arrow
    names = schema.names

    def read(name: str) -> Iterator[Any]:
        field = schema.field(names.index(name))
        yield _no_rows([field]).column(0)
        with parquet.ParquetFile(path, metadata=about) as file:
            # A name such as `a` also chooses `a.b`, hence `select`. Numbers are read at once, since their count says
            # what they take.
            if types.is_primitive(field.type):
                for group in range(about.num_row_groups):
                    yield from file.read_row_group(group, columns=[name]).select([name]).column(0).chunks
                return
            for batch in file.iter_batches(_ROWS, columns=[name]):
                yield batch.select([name]).column(0)

    return ColumnarFile(path, names, about.num_rows, read)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        about = file.metadata
        groups = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        check_size(path, max(groups, 8 * about.num_rows * about.num_columns))
        yield file


def _open_feather_columns(path: Path) -> ColumnarFile:
    import pyarrow as pa
    from pyarrow import feather

    if not _is_arrow(path):
        table = feather.read_table(path, memory_map=True)
        return ColumnarFile(path, table.column_names, table.num_rows, lambda name: iter(table.column(name).chunks))
    with _open_arrow(path) as (file, rows):
        schema = file.schema
    check_size(path, 8 * rows * len(schema))

    def read(name: str) -> Iterator[Any]:
        place = schema.names.index(name)
        yield _no_rows([schema.field(place)]).column(0)
        # Threads would share out the columns of a batch, and starting them takes longer than unpacking one.
        options = pa.ipc.IpcReadOptions(included_fields=[place], use_threads=False)
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source, options=options) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number).column(0)

    return ColumnarFile(path, schema.names, rows, read)


def _feather(path: Path) -> Iterator[Any]:
    from pyarrow import feather

    if not _is_arrow(path):
        yield from feather.read_table(path).to_batches()
        return
    with _open_arrow(path) as (file, _):
        yield _no_rows(file.schema)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            check_size(path, 8 * batch.num_rows * batch.num_columns)
            yield batch


def _is_arrow(path: Path) -> bool:
    """Returns whether a file is not of the first version of Feather, which compresses nothing."""
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


@contextmanager
def _open_arrow(path: Path) -> Iterator[tuple[Any, int]]:
    """Opens an Arrow file that holds no more than it may, and counts its rows."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:  # one map for both: each page is read once
        rows, held = _content(source)
        check_size(path, held)
        with pa.ipc.open_file(source) as file:
            yield file, rows


def _no_rows(fields: Any) -> Any:
    """Returns a batch that names the columns, which a table without rows has, too."""
    import pyarrow as pa

    return pa.record_batch([pa.nulls(0, field.type) for field in fields], schema=pa.schema(fields))


def _content(source: Any) -> tuple[int, int]:
    """Returns the rows of an Arrow file, and what its compressed buffers unpack to: each begins with that number."""
    import pyarrow as pa
    from flatbuffers.table import Table

    rows, held = 0, 0
    source.seek(8)
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return rows, held
        data = message.metadata.to_pybytes()
        table = Table(data, int.from_bytes(data[:4], "little"))
        kind = data[table.Pos + table.Offset(6)] if table.Offset(6) else 0
        if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
            continue
        batch = Table(data, table.Indirect(table.Pos + table.Offset(8)))
        if kind == _DICTIONARY_BATCH:
            batch = Table(data, batch.Indirect(batch.Pos + batch.Offset(6)))
        elif batch.Offset(4):
            rows += int.from_bytes(data[batch.Pos + batch.Offset(4) :][:8], "little")
        if not batch.Offset(10) or not batch.Offset(8):  # not compressed, or without buffers
            continue
        first = batch.Vector(batch.Offset(8))
        places = np.frombuffer(data, "<i8", 2 * batch.VectorLen(batch.Offset(8)), first).reshape(-1, 2)
        body = memoryview(message.body or b"")
        for offset in places[places[:, 1] >= 8, 0].tolist():
            held += max(0, int.from_bytes(body[offset : offset + 8], "little", signed=True))
