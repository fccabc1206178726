#!/usr/bin/env python3
"""Measures what native kernels save, network by network: a step and an evaluation, in ratio to Keras' own, in turns.

Keras' `fit` with one Adam, our optimizer with `exact` and with `native` kernels, Keras' `evaluate`, the same with
`native` kernels, the pass that computes the features in front of the last layer in both ways, and the convolutions and
matrix products of a step alone run in one process, a block after the other.
Ratios are medians over the rounds of processor time, which other work on the machine changes little. Start-up
(processor time up to the fifth step) and peak memory are those of a process for each system.

    python scripts/bench_kernels.py --write docs/kernels.md    # all networks, in about a quarter of an hour
    python scripts/bench_kernels.py mobilenet vit --steps-only
    python scripts/bench_kernels.py lstm --forward-only       # evaluation and features
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from bench_step import in_its_own_process, machine, start, step_graph
from step_systems import BASELINE, SYSTEMS
from step_workloads import WORKLOADS, Batch

from finetune.kernels.native_kernels import NativeLayers, native_kernels, traced_natively, with_kernels
from finetune.training.features.cut import Cut, Front, find_cut

NETWORKS = {
    "mobilenet": "MobileNetV2, 16 images of 96 by 96",
    "efficientnet": "EfficientNetB0, 8 images of 96 by 96",
    "resnet50": "ResNet50, 8 images of 96 by 96",
    "resnet": "ResNet-20, 32 images of 32 by 32",
    "transformer": "of MiniLM's size, 16 texts of 64",
    "bert tiny": "BERT-tiny of KerasHub, 16 texts of 64",
    "vit": "a small ViT, 16 images of 64 patches",
    "lstm": "an LSTM of 128, 32 series of 64",
}
EXACT, NATIVE = "finetune, own loop", "finetune, native kernels"
ALONE = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "MatMul", "BatchMatMul", "BatchMatMulV2")
ALONE += ("DepthwiseConv2dNative", "DepthwiseConv2dNativeBackpropInput", "DepthwiseConv2dNativeBackpropFilter")
MARKS = "<!-- written by scripts/bench_kernels.py -->\n", "<!-- until here -->\n"
COLUMNS = ("step, `exact`", "step, `native`", "products alone", "evaluation", "features", "start-up", "memory")


def evaluations(model: Any, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Returns what evaluates a compiled model on a batch, with the kernels of Keras and with those of TensorFlow."""
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2))
    model.make_test_function(force=True)
    of_keras = model.test_function
    of_keras(batches)
    model.make_test_function(force=True)
    ours = traced_natively(model.test_function, NativeLayers())
    ours(batches)
    return {"evaluation, Keras": lambda: of_keras(batches), "evaluation": lambda: ours(batches)}


def feature_passes(model: keras.Model, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Returns what computes the features of a batch in front of the last layer, by Keras and by TensorFlow's kernels.

    Args:
        model: A model of its own, all of whose layers but the last are frozen here.
        batch: Inputs and targets.
    """
    for layer in model.layers[:-1]:
        layer.trainable = False
    cut = find_cut(model)
    assert isinstance(cut, Cut), cut
    front, inputs = Front(cut, cut.computed), tf.nest.map_structure(tf.constant, batch[0])
    passes: dict[str, Callable[[], Any]] = {}
    for name, kernels in (("features, Keras", "exact"), ("features", "native")):
        run = tf.function(lambda x: front([x], training=True)[0], autograph=False)
        with with_kernels(kernels):
            run(inputs)
        passes[name] = partial(run, inputs)
    return passes


def products_alone(model: keras.Model, batch: Batch) -> Callable[[], Any] | None:
    """Returns what runs a step's convolutions and matrix products on random numbers; `None` where loops hold them."""
    with native_kernels():
        graph = step_graph(model, batch)
    operations = [op for op in _needed(graph) if op.type in ALONE]
    if any(op.type in ("While", "StatelessWhile") for op in graph.get_operations()):
        return None
    calls = [_alone(op) for op in operations]

    # A number of each result: what nobody needs is not computed. Each has its own inputs: equal calls would be merged.
    @tf.function(autograph=False)
    def run() -> list[tf.Tensor]:
        return [tf.reshape(call(), (-1,))[0] for call in calls]

    return run


def _needed(graph: Any) -> list[tf.Operation]:
    """Returns the operations that the results of a function depend on; TensorFlow runs no others."""
    needed: dict[str, tf.Operation] = {}
    waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed[op.name] = op
            waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return [op for op in graph.get_operations() if op.name in needed]


def _alone(op: tf.Operation) -> Callable[[], Any]:
    """Returns a call of an operation of a graph whose inputs are variables of random numbers."""
    made: Any = op.op_def
    arguments: dict[str, Any] = {}
    for argument, tensor in zip(made.input_arg, op.inputs, strict=True):
        if tensor.dtype.is_integer:  # the shape of the result
            arguments[argument.name] = tf.constant(op.outputs[0].shape.as_list())
        else:
            lengths: Any = tensor.shape.as_list()
            numbers = np.random.default_rng(0).standard_normal(lengths)
            arguments[argument.name] = tf.Variable(tf.cast(numbers, tensor.dtype))
    options = {each.name: op.get_attr(each.name) for each in made.attr if each.type != "type"}
    options = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in options.items()
        if not name.startswith("_") and not name.startswith("grad_")
    }
    return lambda: getattr(tf.raw_ops, op.type)(
        **{name: tf.convert_to_tensor(value) for name, value in arguments.items()}, **options
    )


def measure(name: str, seconds: float, *, forward_only: bool = False) -> dict[str, float]:
    """Returns ratios to Keras' own, and the milliseconds of its step.

    Args:
        name: Name of the network.
        seconds: How long to measure.
        forward_only: Whether no step is measured.
    """
    workload, runs = WORKLOADS[name], dict[str, Callable[[], Any]]()
    if forward_only:
        model, batch = workload.build(plain=True)
        SYSTEMS[BASELINE].prepare(model, 1)
        runs |= evaluations(model, batch)
    for system in () if forward_only else (BASELINE, EXACT, NATIVE):
        model, batch, step = start(workload, system, 1)
        runs[system] = lambda step=step: step(workload.block)
        if system == BASELINE:
            runs |= evaluations(model, batch)
            if alone := products_alone(model, batch):
                alone()
                runs["alone"] = alone
    runs |= feature_passes(*workload.build(plain=True))
    spent: dict[str, list[float]] = {run: [] for run in runs}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or len(spent["evaluation"]) < 3:
        for run, call in runs.items():
            begun = time.process_time()
            call()
            # The last results may still be computed: they are waited for where their numbers are read.
            spent[run].append(
                (time.process_time() - begun) / (workload.block if run in (BASELINE, EXACT, NATIVE) else 1)
            )

    def ratio(of: str, to: str = BASELINE) -> float:
        return (
            round(statistics.median(a / b for a, b in zip(spent[of], spent[to], strict=True)), 3)
            if of in spent
            else 0.0
        )

    shown = {COLUMNS[0]: ratio(EXACT), COLUMNS[1]: ratio(NATIVE), COLUMNS[2]: ratio("alone")}
    shown |= {column: ratio(column, f"{column}, Keras") for column in COLUMNS[3:5]}
    milliseconds = round(1000 * statistics.median(spent.get(BASELINE, [0.0])), 1)
    return shown | {"rounds": len(spent["evaluation"]), "milliseconds": milliseconds}


def starts(name: str) -> dict[str, float]:
    """Returns start-up and peak memory in ratio to Keras'."""
    ours, keras_own = (in_its_own_process(name, system, 1) for system in (NATIVE, BASELINE))
    return {COLUMNS[5]: round(ours[0] / keras_own[0], 3), COLUMNS[6]: round(ours[1] / keras_own[1], 3)}


def table(figures: dict[str, dict[str, float]]) -> str:
    """Returns the figures as a table of Markdown."""
    rows = [f"| network | Keras' step, ms | {' | '.join(COLUMNS)} |", "|---|--:" + "|--:" * len(COLUMNS) + "|"]
    for name, of in figures.items():
        cells = [f"{of[column]:.2f}" if of.get(column) else "" for column in COLUMNS]
        milliseconds = f"{of['milliseconds']:.0f}" if of["milliseconds"] else ""
        rows.append(f"| {NETWORKS[name]} | {milliseconds} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Processor time on {machine()}.", ""])


def write(path: Path, text: str) -> None:
    """Puts a text between the marks in a file."""
    before, begins, rest = path.read_text().partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not (begins and ends):
        raise SystemExit(f"`{path}` has no lines `{MARKS[0].strip()}` and `{MARKS[1].strip()}` to write between.")
    path.write_text(before + begins + text + ends + after)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=30.0, help="to measure each network (default %(default)g)")
    parser.add_argument("--steps-only", action="store_true", help="neither start-up nor memory")
    parser.add_argument("--forward-only", action="store_true", help="neither steps, nor start-up, nor memory")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the marks of the table")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"networks are {', '.join(NETWORKS)}; received {', '.join(sorted(unknown))}")
    if options.alone:
        print(json.dumps(measure(options.networks[0], options.seconds, forward_only=options.forward_only)))
        return 0
    figures: dict[str, dict[str, float]] = {}
    for name in options.networks or NETWORKS:
        # A process for each network: its memory is free for the next one.
        command = [sys.executable, __file__, name, "--alone", "--seconds", str(options.seconds)]
        command += ["--forward-only"] if options.forward_only else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"`{name}` failed:\n{done.stderr[-3000:]}")
        figures[name] = json.loads(done.stdout.splitlines()[-1]) | (
            {} if options.steps_only or options.forward_only else starts(name)
        )
        print(name, figures[name], file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    if options.write:
        write(options.write, table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
