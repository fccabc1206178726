#!/usr/bin/env python3
"""Says what a training step consists of, before and after: with Keras' Adam, and with ours, on the same network.

TensorFlow's own profiler notes every kernel that runs, after the graph was optimised: how many there are of each type
in a step, and their share of the time of all kernels. Several run at once, and a step that is watched is slower, so
their time in all is not that of a step; `bench_step.py` measures that.

    python scripts/profile_step.py --json profile.json       # small layers, 100 groups
    python scripts/profile_step.py --workload transformer --groups 8
    python scripts/profile_step.py --workload efficientnet --groups 1 --after "finetune, native kernels" --by-purpose
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from step_systems import BASELINE, SYSTEMS
from step_workloads import WORKLOADS

STEPS = 10
CALLS = ("StatefulPartitionedCall", "PartitionedCall", "While", "StatelessWhile", "If", "StatelessIf")  # hold others
SHOWN = 12
# What kernels are for, by the first of these that is part of their type; oneDNN's begin with `_Mkl`.
PURPOSES = {
    "depthwise, gradient of the kernel": ("DepthwiseConv2dNativeBackpropFilter",),
    "depthwise, gradient of the inputs": ("DepthwiseConv2dNativeBackpropInput",),
    "depthwise, forward": ("DepthwiseConv2d",),
    "convolution, gradient of the kernel": ("Conv2DBackpropFilter", "Conv3DBackpropFilter"),
    "convolution, gradient of the inputs": ("Conv2DBackpropInput", "Conv3DBackpropInput"),
    "convolution, forward": ("Conv2D", "Conv3D"),
    "matrix products": ("MatMul", "Einsum"),
    "normalization": ("BatchNorm", "LayerNorm"),
    "pooling": ("Pool",),
    "optimizer": ("ResourceApply", "ResourceSparseApply", "AssignSubVariable", "AssignAddVariable", "AssignVariable"),
    "embeddings": ("Gather", "UnsortedSegment", "Unique", "ResourceScatter"),
    "slices, transpositions, concatenations": ("Slice", "Transpose", "Concat", "Pad", "Pack", "Split", "Tile"),
    "sums and means": ("Sum", "Mean", "BiasAddGrad", "SquaredDifference"),
    "input": ("Iterator", "Optional", "Dataset"),
}
ELEMENTWISE = "element by element, and the rest"


def profile(workload: str, system: str, groups: int) -> dict[str, Any]:
    """Returns kernels of a step by type: how many, and their share of the kernels' time."""
    keras.utils.set_random_seed(0)
    model, batch = WORKLOADS[workload].build(plain=SYSTEMS[system].plain)
    train = SYSTEMS[system].prepare(model, groups)
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2))
    for _ in range(5):
        train(batches)
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
    counts, picoseconds = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options=options):
            for _ in range(STEPS):
                train(batches)
        for kind, duration in kernels(Path(folder)):
            counts[kind] += 1
            picoseconds[kind] += duration
    whole = sum(picoseconds.values())
    kinds = {kind: (round(counts[kind] / STEPS), round(time / whole, 4)) for kind, time in picoseconds.most_common()}
    told = {"workload": workload, "system": system, "groups": groups}
    in_all = {"kernels": round(sum(counts.values()) / STEPS), "milliseconds": round(whole / STEPS / 1e9, 2)}
    return {**told, **in_all, "kinds": kinds}


def kernels(folder: Path) -> Iterator[tuple[str, int]]:
    """Yields type and picoseconds of every kernel in a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # in TensorFlow's wheel, but in no public name

    space = getattr(xplane_pb2, "XSpace")()  # noqa: B009 - protobuf makes the name when it is imported
    space.ParseFromString(next(folder.rglob("*.xplane.pb")).read_bytes())
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")  # a kernel is `name:Type`
            if name and ":" not in name and kind.isidentifier() and kind not in CALLS:
                yield kind, event.duration_ps


def by_purpose(profiled: dict[str, Any]) -> dict[str, Any]:
    """Returns a profile whose kernels are added up by what they are for."""
    added: dict[str, tuple[int, float]] = {}
    for kind, (number, share) in profiled["kinds"].items():
        purpose = next((name for name, parts in PURPOSES.items() if any(part in kind for part in parts)), ELEMENTWISE)
        before = added.get(purpose, (0, 0.0))
        added[purpose] = before[0] + number, before[1] + share
    return profiled | {"kinds": added}


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Sets two profiles side by side; the kinds that take the most time in either come first."""
    rows = ["| kernel | in a step, before | share | in a step, after | share |", "|---|--:|--:|--:|--:|"]
    none = (0, 0.0)
    either = {
        kind: max(p["kinds"].get(kind, none)[1] for p in (before, after))
        for p in (before, after)
        for kind in p["kinds"]
    }
    for kind in sorted(either, key=lambda kind: -either[kind])[:SHOWN]:
        (few, share), (many, other) = (tuple(p["kinds"].get(kind, none)) for p in (before, after))
        rows.append(f"| {kind} | {few:,} | {share:.1%} | {many:,} | {other:.1%} |")
    in_all = (f"{p['kernels']:,} | {p['milliseconds']:.1f} ms" for p in (before, after))
    return "\n".join([*rows, f"| all kinds | {' | '.join(in_all)} |"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="small layers")
    parser.add_argument("--groups", type=int, default=100, help="of ours (default %(default)s)")
    parser.add_argument("--after", choices=SYSTEMS, default="finetune", help="beside Keras (default %(default)s)")
    parser.add_argument("--by-purpose", action="store_true", help="add up kernels by what they are for")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    found = [profile(options.workload, BASELINE, 1), profile(options.workload, options.after, options.groups)]
    if options.by_purpose:
        found = [by_purpose(each) for each in found]
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(*found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
