#!/usr/bin/env python3
"""Measures how fast a table is read: by finetune with and without pyarrow's help, and by pyarrow itself.

Processor time stands beside the time by the clock, which other work on the machine changes; readers take turns, as
the speed of a machine changes, too. Columns of text are made when they are asked for, so a line has them all.

python scripts/bench_tables.py                   # a million rows of 10 columns, about 80 MB
python scripts/bench_tables.py --rows 100000
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from pyarrow import csv, feather, parquet

from finetune.data import table_files

NUMBERS = "abcdefgh"
ALONE = "pyarrow alone"


def main() -> None:
    """Writes a table in three formats into a temporary folder, and prints how fast each reader reads it."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=7, help="how often each reader reads (default %(default)s)")
    options = parser.parse_args()
    rows, turns = options.rows, options.turns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, rows)
        table = csv.read_csv(path)
        parquet.write_table(table, path.with_suffix(".parquet"))
        feather.write_feather(table, str(path.with_suffix(".feather")))
        print(f"{rows:,} rows of 10 columns, {path.stat().st_size / 1e6:.0f} MB as CSV")
        peer = compare(path, csv.read_csv, rows, turns)
        with mock.patch.object(table_files, "read_plain_csv", return_value=None):
            name = "finetune without pyarrow"
            report(name, in_turns({name: lambda: table_files.read_table(path)}, 1)[name], peer, rows)
        compare(path.with_suffix(".parquet"), parquet.read_table, rows, turns)
        compare(path.with_suffix(".feather"), feather.read_table, rows, turns)


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


def compare(path: Path, read: Callable[[Path], Any], rows: int, turns: int) -> tuple[float, float]:
    """Prints how fast pyarrow's `read` and finetune read a file; returns the seconds of the former."""
    print(path.suffix)
    seconds = in_turns(
        {
            ALONE: lambda: read(path),
            "and its columns of numbers as arrays": lambda: numbers_of(read(path)),
            "finetune": lambda: table_files.read_table(path),
            "and its columns of numbers": lambda: arrays(path, NUMBERS),
            "and every column as an array": lambda: arrays(path),
        },
        turns,
    )
    for name, each in seconds.items():
        report(name, each, seconds[ALONE], rows)
    return seconds[ALONE]


def numbers_of(table: Any) -> list[np.ndarray]:
    """Returns columns of numbers of a `pyarrow.Table` as arrays."""
    return [np.asarray(table[name].to_numpy(), np.float64) for name in NUMBERS]


def arrays(path: Path, names: Sequence[str] = ()) -> list[np.ndarray]:
    """Reads a table, and returns the values of some columns, by default of all."""
    table = table_files.read_table(path)
    return [table.column(name).values for name in names or table.columns]


def in_turns(readers: Mapping[str, Callable[[], object]], turns: int) -> dict[str, tuple[float, float]]:
    """Returns the least seconds of each reader's turns: by the clock, and of the processor."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(turns):
        for name, read in readers.items():
            started = time.perf_counter(), time.process_time()
            read()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return {name: (min(each for each, _ in taken), min(each for _, each in taken)) for name, taken in seconds.items()}


def report(name: str, seconds: tuple[float, float], peer: tuple[float, float], rows: int) -> None:
    """Prints a line: seconds, rows per second, and the speed as a share of pyarrow's, by the clock and by processor."""
    clock, processor = (theirs / ours for theirs, ours in zip(peer, seconds, strict=True))
    print(
        f"{name:36} {seconds[0]:6.2f} s  {rows / seconds[0]:12,.0f} rows/s  {clock:5.2f}x  "
        f"processor {seconds[1]:6.2f} s  {processor:5.2f}x",
        flush=True,
    )


if __name__ == "__main__":
    main()
