#!/usr/bin/env python3
"""Measures start-up and peak memory of large data: TFRecord shards and Parquet tables of more and more rows.

Rows of 200 numbers are written first, to a file for each 100,000. Each size is read in a process of its own, as a
recipe reads it: until the examples are known, then in batches in the order of training. For images see `bench_data.py
--memory`.

    python scripts/bench_large.py --kind tfrecord 10000 100000 1000000
    python scripts/bench_large.py --kind parquet 10000 100000 1000000
    python scripts/bench_large.py --kind parquet 1000000 --shard 1000000      # in a single file
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS, READ_BATCHES, BATCH_SIZE = 200, 100, 32
SOURCES = {
    "tfrecord": 'tfrecord: "part-*.tfrecord", inputs: x, target: label',
    "parquet": f"table: part-*.parquet, inputs: [{', '.join(f'x{n}' for n in range(COLUMNS))}], target: label",
}
RECIPE = """model: {builder: finetune.examples.networks:mlp, head: {classes: 10}}
data: {SOURCE, split: {test: 0.1, by: random}}
groups: {by: layer, peak: 0.1, decay: 2, optimizer: sgd}
train: {epochs: 1, batch_size: 32}
"""


def main() -> None:
    """Writes the rows, and prints a line of a Markdown table for each size."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--kind", choices=SOURCES, default="tfrecord")
    parser.add_argument("--shard", type=int, default=100_000, help="rows of a file")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    print("| rows | on disk, MB | processor seconds until they are known | peak memory, MB |\n|--:|--:|--:|--:|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), options.kind, rows, options.shard)
            size = sum(path.stat().st_size for path in Path(folder).glob("part-*")) / 1e6
            command = [sys.executable, __file__, "--read", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            start, peak = json.loads(done.stdout.splitlines()[-1])
            print(f"| {rows:,} | {size:,.0f} | {start:.1f} | {peak:,.0f} |", flush=True)


def write_rows(folder: Path, kind: str, rows: int, shard: int) -> None:
    """Writes shards and a recipe that reads them."""
    import numpy as np
    import pyarrow as pa
    import tensorflow as tf
    from pyarrow import parquet

    (folder / "recipe.yaml").write_text(RECIPE.replace("SOURCE", SOURCES[kind]))
    random = np.random.default_rng(0)
    for begin in range(0, rows, shard):
        count = min(shard, rows - begin)
        x, labels = random.standard_normal((count, COLUMNS), np.float32), np.arange(count) % 10
        path = folder / f"part-{begin // shard:04}.{kind}"
        if kind == "parquet":
            parquet.write_table(pa.table({f"x{n}": x[:, n] for n in range(COLUMNS)} | {"label": labels}), path)
            continue
        example = tf.train.Example()
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row, label in zip(x, labels, strict=True):
                example.features.feature["x"].float_list.value[:] = row.tolist()
                example.features.feature["label"].int64_list.value[:] = [int(label)]
                writer.write(example.SerializeToString())


def read(folder: Path) -> tuple[float, float]:
    """Returns the processor seconds until the examples are known, and the peak memory in MB after some batches."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from finetune.build.data import build_examples
    from finetune.data.batches import training_batches
    from finetune.recipe.loader import load_recipe

    begun = time.process_time()
    examples = build_examples(load_recipe(folder / "recipe.yaml"))
    start = time.process_time() - begun
    for _ in training_batches(examples.x_train, examples.y_train, batch_size=BATCH_SIZE).take(READ_BATCHES):
        pass
    return start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
