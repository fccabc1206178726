"""Compressed tables: the same values, and limits for small files that hold much."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from finetune.data import arrow_csv, table_files
from finetune.data.table_bytes import ending_of, read_bytes
from finetune.data.table_files import read_table
from finetune.data.table_head import read_head
from finetune.errors import DataError, FinetuneError

TEXTS = {
    "t.csv": "a;b\n1,5;x\n-2;y\n",
    "t.tsv": "a\tb\n1.5\tx\n-2\ty\n",
    "t.txt": "a|b\n1.5|x\n-2|y\n",
    "t.jsonl": '{"a": 1.5, "b": "x"}\n{"a": -2, "b": "y"}\n',
    "t.json": '[{"a": 1.5, "b": "x"},\n {"a": -2, "b": "y"}]',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("ending", "module"), [("gz", gzip), ("bz2", bz2), ("xz", lzma), ("GZ", gzip)])
def test_a_compressed_table_has_the_values_of_the_table(tmp_path, monkeypatch, name, ending, module):
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(module.compress(TEXTS[name].encode()))
    assert (ending_of(path), read_bytes(path).decode()) == (Path(name).suffix, TEXTS[name])
    table = read_table(path)
    assert (table.column("a").values.tolist(), table.column("b").values.tolist()) == ([1.5, -2], ["x", "y"])
    assert table.places.text(0).startswith(f"{path.name}:")
    assert list(read_head(path) or ("a", "b")) == ["a", "b"]
    monkeypatch.setattr(table_files, "read_plain_csv", lambda *_, **__: None)
    assert read_table(path).column("a").values.tolist() == [1.5, -2]


def test_a_small_file_that_holds_much_is_refused_before_the_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "1MB")
    for name, line in (("t.csv.gz", "1,2\n"), ("t.jsonl.gz", '{"a": 1}\n')):
        (tmp_path / name).write_bytes(gzip.compress(b"a,b\n" * ("csv" in name) + line.encode() * 2**20))
        assert (tmp_path / name).stat().st_size < 50_000
        with pytest.raises(
            FinetuneError, match=r"may hold 1,000,000 bytes, so that a small file cannot fill the memory"
        ):
            read_table(tmp_path / name)
        assert read_head(tmp_path / name) in (None, {"a": ["1"] * 999, "b": ["2"] * 999})


@pytest.mark.parametrize("cut", [30, -12, -1])
def test_a_compressed_table_that_is_cut_off_is_an_error(tmp_path, cut):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress("".join(f"{n},{n * n}\n" for n in range(300)).encode())[:cut])
    with pytest.raises(DataError, match=r"must be whole. `.*t\.csv\.gz` cannot be unpacked: .*Write it again"):
        read_table(path)


def test_only_tables_in_text_are_unpacked():
    assert [ending_of(Path(name)) for name in ("a.parquet.gz", "a.gz", "a.tar.gz", "b.csv")] == [
        ".gz",
        ".gz",
        ".gz",
        ".csv",
    ]
    assert arrow_csv.is_compressed(Path("a.csv.gz"))
