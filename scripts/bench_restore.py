#!/usr/bin/env python3
"""Measures the peak memory of restoring from a large safetensors file: into a quarter of its layers, and into all.

A file of 1 GB (60 matrices) is written to a temporary folder. For each case a fresh process builds a model of as many
dense layers, restores them and prints how far its resident memory rose while it did.

    python scripts/bench_restore.py
    python scripts/bench_restore.py --matrices 12      # a small file, for a first look
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

import numpy as np

WIDTH = 2048
BYTES = 4 * WIDTH * WIDTH
MB = 1_000_000


def main() -> None:
    """Writes the file and starts a process for each case, or is such a process."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=60, help="of 16.8 MB each")
    parser.add_argument("--restore", nargs=2, metavar=("FILE", "LAYERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.restore:
        measure(Path(options.restore[0]), int(options.restore[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write(path, options.matrices)
        print(f"file: {path.stat().st_size / MB:,.0f} MB in {options.matrices} matrices")
        for layers in (options.matrices // 4, options.matrices):
            command = [sys.executable, __file__, "--restore", str(path), str(layers)]
            subprocess.run(
                command, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL
            )


def write(path: Path, matrices: int) -> None:
    """Writes the same matrix of random numbers under many names as a safetensors file."""
    offsets = {f"layer_{i}.weight": (i * BYTES, (i + 1) * BYTES) for i in range(matrices)}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": [WIDTH, WIDTH], "data_offsets": ends} for name, ends in offsets.items()}
    ).encode()
    block = np.random.default_rng(0).normal(size=WIDTH * WIDTH).astype("float32").tobytes()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(matrices):
            file.write(block)


def measure(path: Path, count: int) -> None:
    """Restores into the first `count` layers and prints the rise of resident memory."""
    import keras
    from keras import layers

    from finetune.pretrained.restore import restore

    dense = [layers.Dense(WIDTH, use_bias=False, kernel_initializer="zeros", name=f"layer_{i}") for i in range(count)]
    model = keras.Sequential([keras.Input((WIDTH,)), *dense])
    held = resident()
    started = time.monotonic()
    report = restore(
        model, path, rename={r"\.weight$": "/kernel"}, allow_unused=["layer_" + str(i) for i in range(1000)]
    )
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{len(report.restored)} of {count + len(report.unused)} weights restored ({count * BYTES / MB:,.0f} MB): "
        f"{held / MB:,.0f} MB before, {peak / MB:,.0f} MB at the peak, {(peak - held) / MB:,.0f} MB more; "
        f"{seconds:.1f} s",
        flush=True,
    )


def resident() -> int:
    """Returns the resident memory of this process, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
