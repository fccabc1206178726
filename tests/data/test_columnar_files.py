import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from finetune.data.columnar_files import columnar_batches, read_columnar
from finetune.data.table_files import read_table
from finetune.errors import DataError, FinetuneError


def table(rows):
    return pa.table(
        {
            "number": np.arange(rows) / 2,
            "text": [f"text {n}" for n in range(rows)],
            "none": pa.array([None if n % 3 else n for n in range(rows)], pa.int64()),
            "kind": pa.array([["a", "b"][n % 2] for n in range(rows)]).dictionary_encode(),
            "list": [[n, n + 1] for n in range(rows)],
            "number.text": [str(n) for n in range(rows)],
            "flag": [n % 2 == 0 for n in range(rows)],
        }
    )


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 10_000])
@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_columns_are_those_that_pyarrow_reads_at_once(tmp_path, rows, ending):
    whole, path = table(rows), tmp_path / f"t{ending}"
    if ending == ".parquet":
        parquet.write_table(whole, path, row_group_size=3000)
    else:
        feather.write_feather(whole, str(path), compression="zstd", chunksize=3000)
    assert {name: column.to_pylist() for name, column in read_columnar(path).items()} == whole.to_pydict()
    assert [*columnar_batches(path)][-1][0] == whole.column_names


@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_two_columns_of_a_name_are_an_error(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    made = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "a"])
    parquet.write_table(made, path) if ending == ".parquet" else feather.write_feather(made, str(path))
    with pytest.raises(DataError, match=r"Every column needs a name of its own. In `.*` these occur twice: `a`\."):
        read_columnar(path)


def test_a_run_of_equal_numbers_that_would_fill_the_memory_is_refused(tmp_path):
    path, zeros = tmp_path / "t.parquet", pa.array(np.zeros(10_000_000, np.int64))
    parquet.write_table(pa.table({"a": zeros, "b": zeros}), path, row_group_size=10_000_000)
    assert path.stat().st_size < 500_000
    with pytest.raises(FinetuneError, match=r"may hold 104,857,600 bytes, .* holds 160,0"):
        read_table(path)


@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_a_text_that_many_rows_name_counts_in_each(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), pa.array(["x" * 2**16]))
    write = parquet.write_table if ending == ".parquet" else lambda made, to: feather.write_feather(made, str(to))
    write(pa.table({"a": texts, "b": np.arange(5000)}), path)
    assert read_table(path).column("b").values.tolist() == [*range(5000)]
    with pytest.raises(FinetuneError, match=r"A file of [\d,]+ bytes may hold 104,857,600 bytes, .* holds \d"):
        read_table(path).column("a")


def test_compressed_buffers_say_what_they_unpack_to_before_they_do(tmp_path):
    path, zeros = tmp_path / "t.feather", np.zeros(20_000_000, np.int64)
    feather.write_feather(pa.table({"a": zeros}), str(path), compression="zstd", chunksize=len(zeros))
    assert path.stat().st_size < 500_000
    before = pa.total_allocated_bytes()
    with pytest.raises(FinetuneError, match=r"may hold 104,857,600 bytes, .* holds 160,000,000"):
        read_table(path)
    assert pa.total_allocated_bytes() <= before
    feather.write_feather(pa.table({"a": zeros[:1000]}), str(path), compression="lz4")
    assert len(read_columnar(path)["a"]) == 1000


def test_the_limit_is_that_of_every_file(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    parquet.write_table(table(100), path)
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "1KB")
    with pytest.raises(FinetuneError, match="may hold 1,000 bytes"):
        read_columnar(path)


@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path, ending):
    for content in (b"", b"PAR1", b"ARROW1\0\0", b"no table at all" * 100):
        (tmp_path / f"t{ending}").write_bytes(content)
        with pytest.raises(DataError, match=f"t{ending}` cannot be read as a table: "):
            read_columnar(tmp_path / f"t{ending}")


@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_a_column_is_read_when_it_is_asked_for_and_alone(tmp_path, ending):
    path, rows = tmp_path / f"t{ending}", 2**16
    whole = pa.table({f"x{n}": np.full(rows, n, np.float64) for n in range(8)})
    parquet.write_table(whole, path) if ending == ".parquet" else feather.write_feather(
        whole, str(path), compression="zstd"
    )
    before = pa.total_allocated_bytes()
    opened = read_columnar(path)
    assert (list(opened), opened.rows) == (whole.column_names, rows)
    assert pa.total_allocated_bytes() - before < rows
    column = opened["x7"]
    assert (len(column), column[-1].as_py()) == (rows, 7)
    assert pa.total_allocated_bytes() - before < 3 * 8 * rows
    with pytest.raises(KeyError):
        opened["x"]


@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_a_file_that_changes_between_two_columns_is_refused(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    write = parquet.write_table if ending == ".parquet" else lambda made, to: feather.write_feather(made, str(to))
    write(table(10), path)
    opened = read_columnar(path)
    assert len(opened["number"]) == 10
    write(table(11), path)
    with pytest.raises(DataError, match=r"A table stays as it is while it is read. `.*` has changed. Start again\."):
        opened["text"]


def test_columns_of_a_file_have_its_limit_together(tmp_path):
    path, texts = tmp_path / "t.parquet", pa.DictionaryArray.from_arrays(np.zeros(900, np.int32), ["x" * 2**16])
    parquet.write_table(pa.table({"a": texts, "b": texts}), path)
    opened = read_columnar(path)
    for _ in range(3):
        assert len(opened["a"]) == 900  # 59 MB, which count once
    with pytest.raises(FinetuneError, match=r"may hold 104,857,600 bytes, .* holds 1\d\d,"):
        opened["b"]
