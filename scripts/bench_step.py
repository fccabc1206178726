#!/usr/bin/env python3
"""Measures what one training step costs, relative to Keras with one Adam for everything, at 1 to 1,000 layer groups.

All systems of a workload run in turns, a block of steps each, with equal data; `ratio` is the median over the rounds of
a system's time by that of Keras in the same round, `spread` the middle half of these ratios. Keras' and our systems run
in one process, a step being one call of the function that `fit` calls; a peer of another framework runs in a process of
its own, which makes steps when its turn comes. Start-up (processor time of a whole process up to its fifth step) and
peak memory are measured in a process for each system. The baseline is always trained whole and in float32.

    python scripts/bench_step.py --quick --json quick.json     # small layers only, in about two minutes
    python scripts/bench_step.py --json all.json               # everything, in about an hour
    python scripts/bench_step.py --workload resnet --groups 1 --processor --steps-only   # beside other work
    python scripts/plot_step.py all.json                       # docs/step.md and its pictures from that
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from peers.serving import peak_memory
from step_peers import HOW_TO, PEERS, running, wanted_peers
from step_systems import BASELINE, SYSTEMS
from step_workloads import NEEDS_BFLOAT16, WORKLOADS, Batch, Workload, has_bfloat16

Case = tuple[str, int]
IMPORTED = time.process_time()  # seconds that Python, TensorFlow and Keras take before anything is made


@dataclass(frozen=True)
class Figure:
    """One measurement, as the JSON file holds it; `ratio` and `spread` are relative to Keras with one Adam.

    `startup_cpu_seconds` is of a whole process, of which `import_cpu_seconds` pass before anything is made.
    `operations` is the size of the step's graph, which is the same on every machine.
    """

    workload: str
    system: str
    groups: int
    ratio: float
    spread: tuple[float, float]
    step_milliseconds: float
    startup_cpu_seconds: float | None
    peak_rss_mb: float | None
    operations: int | None
    import_cpu_seconds: float | None
    machine: str


def cases(workload: Workload, *, quick: bool = False, groups: int | None = None) -> list[Case]:
    """Returns the systems that run in this process, with their numbers of groups, or with this one."""
    wanted = {name: SYSTEMS[name] for name in workload.systems or SYSTEMS if SYSTEMS[name].quick or not quick}
    return [(name, n) for name, system in wanted.items() for n in system.groups(workload) if groups in (None, n)]


def start(workload: Workload, name: str, groups: int) -> tuple[keras.Model, Batch, Callable[[int], int]]:
    """Builds and warms up a system; returns its model, its batch and what makes about so many steps and counts them."""
    keras.utils.set_random_seed(0)
    system = SYSTEMS[name]
    model, batch = workload.build(plain=system.plain)
    train = system.prepare(model, groups)
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2))

    def step(steps: int) -> int:
        calls = max(1, steps // system.steps_per_call)
        for _ in range(calls):
            train(batches)
        return calls * system.steps_per_call

    step(5)
    return model, batch, step


def in_turns(
    workload: Workload, wanted: Sequence[Case], peers: Mapping[Case, Any], rounds: int, *, processor: bool = False
) -> dict[Case, Any]:
    """Returns the seconds of a step of every case, round by round, or the processor seconds."""
    clock = time.process_time if processor else time.perf_counter
    steps = {case: start(workload, *case)[2] for case in wanted}
    seconds: dict[Case, list[float]] = {case: [] for case in [*wanted, *peers]}
    for _ in range(rounds):
        for case, step in steps.items():
            begun = clock()
            made = step(workload.block)
            seconds[case].append((clock() - begun) / made)
        for case, peer in peers.items():
            seconds[case].append(peer.step(workload.block, processor=processor) / workload.block)
    return seconds


Start = tuple[float, float, int | None, float | None]
NoStart = tuple[None, None, None, None]


def in_its_own_process(workload: str, system: str, groups: int) -> Start:
    """Returns processor seconds up to the fifth step, peak memory in MB, operations, and seconds of the imports."""
    command = [sys.executable, __file__, "--alone", workload, system, str(groups)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`{system}` failed at {groups} groups of `{workload}`:\n{done.stderr}")
    seconds, memory, operations, imports = map(float, done.stdout.split()[-4:])
    return round(seconds, 2), round(memory, 1), int(operations) or None, round(imports, 2)


def usual_starts(workload: str, wanted: Sequence[Case], times: int) -> dict[Case, Start]:
    """Starts every case some times, in turns; returns of each the start whose seconds are the median."""
    starts = [{case: in_its_own_process(workload, *case) for case in wanted} for _ in range(times)]
    return {case: sorted((one[case] for one in starts), key=lambda start: start[0])[times // 2] for case in wanted}


def alone(workload: str, system: str, groups: int) -> None:
    model, batch, _ = start(WORKLOADS[workload], system, groups)
    print(time.process_time(), peak_memory(), count_operations(model, batch), IMPORTED)


def count_operations(model: keras.Model, batch: Batch) -> int:
    """Returns the operations of a compiled step; 0 if the step is not the model's own."""
    if not model.compiled:
        return 0
    return len(step_graph(model, batch).get_operations())


def step_graph(model: keras.Model, batch: Batch) -> tf.Graph:
    """Returns the graph of a compiled step."""
    step = tf.function(lambda *batch: model.train_step(batch))
    return step.get_concrete_function(*map(tf.constant, batch)).graph


def measure(name: str, options: argparse.Namespace) -> Iterator[Figure]:
    workload, here = WORKLOADS[name], machine()
    wanted = cases(workload, quick=options.quick, groups=options.groups)
    apart: dict[Case, Start | NoStart] = {}
    if not options.steps_only:
        apart |= usual_starts(name, wanted, options.starts)
    with running([] if options.quick else wanted_peers(workload, options.groups), options.peers, name) as peers:
        if not options.steps_only:
            apart |= {
                case: (round(p.startup_cpu_seconds, 2), round(p.peak_rss_mb, 1), None, None)
                for case, p in peers.items()
            }
        seconds = in_turns(workload, wanted, peers, options.rounds or workload.rounds, processor=options.processor)
    base = seconds[BASELINE, 1]
    for case, own in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, base, strict=True)], n=4)
        usual = round(statistics.median(own) * 1000, 3)
        started = apart.get(case, (None, None, None, None))
        yield Figure(name, *case, round(middle, 3), (round(low, 3), round(high, 3)), usual, *started, here)


def table(figures: Sequence[Figure]) -> str:
    apart = ("start-up, s", "of it imports", "memory, MB", "operations")
    columns = ("workload", "system", "groups", "step", "middle half", *apart)
    rows = [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for f in figures:
        low, high = f.spread
        measured = (f.startup_cpu_seconds, ".1f"), (f.import_cpu_seconds, ".1f"), (f.peak_rss_mb, ".0f")
        start = " | ".join("" if figure is None else format(figure, form) for figure, form in measured)
        step = f"{f.ratio:.2f}x | {low:.2f}-{high:.2f} | {start} | {f.operations or ''}"
        rows.append(f"| {f.workload} | {f.system} | {f.groups} | {step} |")
    return "\n".join([*rows, "", f"On {machine()}."])


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}, TensorFlow {tf.__version__}, Keras {keras.__version__}"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=HOW_TO, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small layers only, finetune against Keras")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only these")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--rounds", type=int, help="rounds of blocks, >= 2 (default: as the workload has it)")
    parser.add_argument("--groups", type=int, help="only this number of layer groups, one that the workload has")
    parser.add_argument("--processor", action="store_true", help="processor seconds, which other work changes little")
    parser.add_argument("--starts", type=int, default=1, help="processes that start-up is the median of (default 1)")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    parser.add_argument("--steps-only", action="store_true", help="neither start-up nor memory")
    parser.add_argument("--peers", action="append", default=[], metavar="NAME=PYTHON", help="torch or jax; see below")
    parser.add_argument("--alone", nargs=3, metavar=("WORKLOAD", "SYSTEM", "GROUPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 2:
        parser.error("--rounds is at least 2")
    if options.starts < 1:
        parser.error("--starts is at least 1")
    options.peers = dict(pair.partition("=")[::2] for pair in options.peers)
    unknown = set(options.peers) - {peer.environment for peer in PEERS.values()}
    if unknown:
        parser.error(f"--peers knows torch, jax and tf1, received {', '.join(sorted(unknown))}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    if options.alone:
        workload, system, groups = options.alone
        alone(workload, system, int(groups))
        return 0
    figures = []
    for name in options.workload or (["small layers"] if options.quick else WORKLOADS):
        if name in NEEDS_BFLOAT16 and not has_bfloat16():
            print(f"without `{name}`: the processor does not compute in bfloat16", file=sys.stderr)
            continue
        for figure in measure(name, options):
            figures.append(figure)
            print(figure, file=sys.stderr)
        keras.backend.clear_session()
        gc.collect()
        if options.json:  # after every workload: a run of an hour may be broken off
            options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    if options.markdown or not options.json:
        print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
