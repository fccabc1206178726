#!/usr/bin/env python3
"""Measures how fast a table is read: by finetune with and without pyarrow's help, and by pyarrow itself.

Processor time stands beside the time by the clock, which other work on the machine changes. Columns of text are made
when they are asked for, so a line has them all.

python scripts/bench_tables.py                   # a million rows of 10 columns, about 80 MB
python scripts/bench_tables.py --rows 100000
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from pyarrow import csv, feather, parquet

from finetune.data import table_files

NUMBERS = "abcdefgh"


def main() -> None:
    """Writes a table into a temporary folder and prints the time of each reader, the best of three."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, rows)
        print(f"{rows:,} rows of 10 columns, {path.stat().st_size / 1e6:.0f} MB")
        peer = best(lambda: csv.read_csv(path))
        report("pyarrow alone, its own types", peer, peer, rows)
        report("finetune with pyarrow", best(lambda: table_files.read_table(path)), peer, rows)
        report("and every column as an array", best(lambda: arrays(path)), peer, rows)
        with mock.patch.object(table_files, "read_plain_csv", return_value=None):
            report("finetune without", best(lambda: table_files.read_table(path), times=1), peer, rows)
        table = csv.read_csv(path)
        for ending, write_file, read_file in (
            (".parquet", parquet.write_table, parquet.read_table),
            (".feather", feather.write_feather, feather.read_table),
        ):
            other = Path(folder) / f"table{ending}"
            write_file(table, str(other))
            peer = best(lambda read=read_file, other=other: read(other))
            report(f"{ending}: pyarrow alone", peer, peer, rows)
            report("finetune", best(lambda other=other: table_files.read_table(other)), peer, rows)
            report("and its columns of numbers", best(lambda other=other: arrays(other, NUMBERS)), peer, rows)
            report("and every column as an array", best(lambda other=other: arrays(other)), peer, rows)


def write(path: Path, rows: int) -> None:
    """Writes a table of six columns of fractions, two of whole numbers, a category and a text."""
    random = np.random.default_rng(0)
    fractions, whole = random.normal(size=(rows, 6)), random.integers(0, 1000, (rows, 2))
    towns = random.choice(["Aalen", "Bonn", "Celle", "Dessau"], rows)
    with path.open("w", encoding="utf-8") as file:
        file.write("a,b,c,d,e,f,g,h,town,text\n")
        for row in range(rows):
            numbers = ",".join(f"{value:.6g}" for value in fractions[row])
            file.write(f"{numbers},{whole[row, 0]},{whole[row, 1]},{towns[row]},row number {row}\n")


def arrays(path: Path, names: Sequence[str] = ()) -> list[np.ndarray]:
    """Reads a table, and returns the values of some columns, by default of all."""
    table = table_files.read_table(path)
    return [table.column(name).values for name in names or table.columns]


def best(read: Callable[[], object], times: int = 5) -> tuple[float, float]:
    """Returns the least seconds of several calls: by the clock, and of the processor."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter(), time.process_time()
        read()
        seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return min(each for each, _ in seconds), min(each for _, each in seconds)


def report(name: str, seconds: tuple[float, float], peer: tuple[float, float], rows: int) -> None:
    """Prints a line: seconds, rows per second, and the speed as a share of pyarrow's, by the clock and by processor."""
    clock, processor = (theirs / ours for theirs, ours in zip(peer, seconds, strict=True))
    print(
        f"{name:30} {seconds[0]:6.2f} s  {rows / seconds[0]:12,.0f} rows/s  {clock:5.2f}x  "
        f"processor {seconds[1]:6.2f} s  {processor:5.2f}x"
    )


if __name__ == "__main__":
    main()
