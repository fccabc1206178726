#!/usr/bin/env python3
"""Measures how steps of several workers of this machine take longer, and predicts how many machines would do.

Each number of workers is started as real processes, which train a stack of dense layers with the fast loop, each on a
processor of its own (where there are as many). Two measures: *strong* scaling, where the global batch stays and each
worker has a smaller part, and *weak* scaling, where each worker has as many rows as one had. All workers share this
machine, so only ratios mean something.

    python scripts/bench_scale.py                                         # measure, and compare with the model
    python scripts/bench_scale.py --link 1000 --link 100 --link 100:0.01  # two workers, joined by such links (as root)
    python scripts/bench_scale.py --predict --step-ms 250 --megabytes 100 --gbit 25 --rows 32
    python scripts/bench_scale.py --link 100 --predict --write docs/several_workers.md

The model. A worker's step on n rows takes `compute(n)`. Then the W workers sum M bytes in a ring: each sends
`2 (W - 1) / W * M`, in `2 (W - 1)` messages one after another:

    step(W, n) = compute(n) + 2 (W - 1) / W * M / bandwidth + 4 * 2 (W - 1) * latency

since a step has four sums, one after another: of the rows, of what the loss is a mean of, of the gradients, and of the
metrics. M is 4 bytes for each trained weight: frozen groups send nothing. `compute(n)` is measured in the same
processes while all of them train without a sum, so that it holds what they take from each other; for predictions it is
`fixed + row * n`. With `--link MBIT[:LOSS]` the bandwidth is that of the link, what is sent is counted at its ends, and
nothing of the model is fitted to a step of several workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_networks import HOSTS, joined_networks, sent_bytes

WIDTH, LAYERS, STEPS = 512, 4, 24
ROWS, ROWS_OF_LINKS = 2048, 256  # in a batch: of processors of one machine, and over links, which are slow
SUMS = 4  # in a step
PREDICTED = (1, 8, 32, 128, 512, 1024)
FROZEN_SHARES = (0.0, 0.5, 0.9, 0.99)
MARKS = "<!-- written by scripts/bench_scale.py -->\n", "<!-- until here -->\n"


@dataclass(frozen=True)
class Costs:
    """What a step is made of.

    Attributes:
        fixed: Seconds that do not depend on the rows.
        row: Seconds for each row of a worker.
        bandwidth: Bytes a second between two workers.
        latency: Seconds for each message.
    """

    fixed: float
    row: float
    bandwidth: float
    latency: float

    def step(self, workers: int, rows: float, megabytes: float) -> float:
        """Returns the seconds of a step.

        Args:
            workers: How many, >= 1.
            rows: Rows of each of them.
            megabytes: Of gradients, 10**6 bytes each.
        """
        return self.fixed + self.row * rows + self.sums(workers, megabytes)

    def sums(self, workers: int, megabytes: float) -> float:
        """Returns the seconds in which the workers sum their gradients."""
        sent = 2 * (workers - 1) / workers * megabytes * 1e6
        return sent / self.bandwidth + SUMS * 2 * (workers - 1) * self.latency


def efficiency(costs: Costs, workers: int, rows: float, megabytes: float, *, weak: bool) -> float:
    """Returns the share of the time of all workers that training takes alone.

    Args:
        costs: What a step is made of.
        workers: How many, >= 1.
        rows: Rows of a worker (`weak`), or of all together.
        megabytes: Of gradients.
        weak: Whether each worker has as many rows as a single one would.
    """
    alone = costs.step(1, rows, 0)
    if weak:
        return alone / costs.step(workers, rows, megabytes)
    return alone / (workers * costs.step(workers, rows / workers, megabytes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, or predicts, or is a worker."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers to measure (default: 1 2)")
    parser.add_argument("--link", type=link, action="append", default=[], metavar="MBIT[:LOSS]")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the marks of the tables")
    parser.add_argument("--predict", action="store_true", help="print the model for the costs that follow")
    parser.add_argument("--step-ms", type=float, default=250.0, help="of a step of one worker")
    parser.add_argument("--fixed-share", type=float, default=0.05, help="of that, what does not depend on the rows")
    parser.add_argument("--rows", type=int, default=32, help="of a worker")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of all weights")
    parser.add_argument("--gbit", type=float, default=25.0, help="a second between two machines")
    parser.add_argument("--latency-us", type=float, default=30.0, help="of a message")
    parser.add_argument("--work", nargs=2, metavar=("CASES", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(json.loads(options.work[0]), Path(options.work[1]))
        return
    tables = []
    numbers = options.workers or ([] if options.predict or options.link else [1, 2])
    if numbers:
        tables.append(scaling_table(numbers))
    if options.link:
        tables.append(links_table(options.link))
    if options.predict:
        seconds = options.step_ms / 1e3
        fixed, row = options.fixed_share * seconds, (1 - options.fixed_share) * seconds / options.rows
        costs = Costs(fixed, row, options.gbit * 1e9 / 8, options.latency_us / 1e6)
        tables += [prediction(costs, options.rows, options.megabytes, weak=weak) for weak in (True, False)]
    text = "\n".join(tables)
    print(text, end="")
    if options.write:
        write(options.write, text)


def link(text: str) -> tuple[float, float]:
    """Reads `MBIT` or `MBIT:LOSS`."""
    mbit, _, loss = text.partition(":")
    values = float(mbit), float(loss or 0)
    if values[0] <= 0 or not 0 <= values[1] < 1:
        raise argparse.ArgumentTypeError("megabits a second > 0, and a share of lost packets in [0, 1)")
    return values


def scaling_table(numbers: Sequence[int]) -> str:
    """Measures strong and weak scaling; returns the table."""
    lines = [
        f"`python scripts/bench_scale.py --workers {' '.join(map(str, numbers))}`: {LAYERS} dense layers of {WIDTH}, a",
        f"worker on each of {os.cpu_count()} processors of one machine.\n",
        f"| workers | rows of all | step, of one worker's with {ROWS:,} rows | model | error |",
        "|--:|--:|--:|--:|--:|",
    ]
    one = None
    for workers in numbers:
        cases = [(rows, 0) for rows in dict.fromkeys((ROWS, workers * ROWS))]
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(workers, cases, Path(folder))
        for (rows, _), case in zip(cases, measured["cases"], strict=True):
            one = one or case["alone"]
            costs = Costs(case["alone"], 0, bandwidth_of(measured, workers), latency_of(measured, workers))
            model = costs.step(workers, 0, megabytes_of(0)) if workers > 1 else case["alone"]
            error = model / case["step"] - 1
            lines.append(f"| {workers} | {rows} | {case['step'] / one:.2f} | {model / one:.2f} | {error:+.0%} |")
    return "\n".join(lines) + "\n"


def links_table(links: Sequence[tuple[float, float]]) -> str:
    """Measures two workers joined by links; returns the table."""
    options = " ".join(f"--link {mbit:g}" + (f":{loss:g}" if loss else "") for mbit, loss in links)
    lines = [
        f"`python scripts/bench_scale.py {options}`: two workers in two network namespaces,",
        f"{ROWS_OF_LINKS} rows in a batch.\n",
        "| link | frozen | MB sent a step: gradients | counted | ms a step: without sums | measured | model | error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    cases = [(ROWS_OF_LINKS, frozen) for frozen in (0, LAYERS // 2, LAYERS - 1)]
    for mbit, loss in links:
        with tempfile.TemporaryDirectory() as folder, joined_networks(mbit, loss) as inside:
            measured = measure(2, cases, Path(folder), inside)
        name = f"{mbit:g} Mbit/s" + (f", {loss:.1%} lost" if loss else "")
        for (_, frozen), case in zip(cases, measured["cases"], strict=True):
            costs = Costs(case["alone"], 0, mbit * 1e6 / 8, latency_of(measured, 2))
            model = costs.step(2, 0, megabytes_of(frozen))
            times = f"{case['alone'] * 1e3:.0f} | {case['step'] * 1e3:.0f} | {model * 1e3:.0f}"
            sent = f"{megabytes_of(frozen):.2f} | {case['sent'] / 1e6:.2f}"
            lines.append(f"| {name} | {frozen / LAYERS:.0%} | {sent} | {times} | {model / case['step'] - 1:+.0%} |")
    return "\n".join(lines) + "\n"


def prediction(costs: Costs, rows: int, megabytes: float, *, weak: bool) -> str:
    """Returns a table of the efficiency for several numbers of workers and shares of frozen weights."""
    total = f"{rows} rows on each worker" if weak else f"{rows * 8} rows on all together"
    step, gbit = costs.step(1, rows, 0) * 1e3, costs.bandwidth * 8 / 1e9
    lines = [
        f"{'Weak' if weak else 'Strong'} scaling, {total}: efficiency by the frozen share of {megabytes:g} MB of",
        f"weights; {step:g} ms a step of {rows} rows alone, {costs.latency * 1e6:g} us a message, {gbit:g} Gbit/s.\n",
        "| workers | " + " | ".join(f"{share:.0%}" for share in FROZEN_SHARES) + " |",
        "|--:|" + "--:|" * len(FROZEN_SHARES),
    ]
    for workers in PREDICTED if weak else [workers for workers in PREDICTED if workers <= rows * 8]:
        values = [
            efficiency(costs, workers, rows if weak else rows * 8, megabytes * (1 - share), weak=weak)
            for share in FROZEN_SHARES
        ]
        lines.append(f"| {workers:,} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def megabytes_of(frozen: int) -> float:
    """Returns how many MB the gradients of a step are, if so many layers are frozen."""
    return 4 * (LAYERS - frozen) * (WIDTH + 1) * WIDTH / 1e6


def latency_of(measured: dict[str, Any], workers: int) -> float:
    """Returns the seconds of a message, of which the sum of a number takes `2 (W - 1)`."""
    return measured["message"] / max(1, 2 * (workers - 1))


def bandwidth_of(measured: dict[str, Any], workers: int) -> float:
    """Returns the bytes a second with which the gradients were summed alone."""
    sent = 2 * (workers - 1) / workers * megabytes_of(0) * 1e6
    return sent / max(measured["sum"] - measured["message"], 1e-9)


def measure(
    workers: int, cases: Sequence[tuple[int, int]], folder: Path, inside: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Starts workers; returns what the first of them has measured, see `work`.

    Args:
        workers: How many.
        cases: Rows of a batch, and how many layers are frozen.
        folder: Gets logs.
        inside: What stands before the command of each of two workers that are in networks of their own.
    """
    from finetune.distribution.cluster import VARIABLE, Cluster
    from finetune.distribution.worker_processes import launch

    out = folder / "measured.json"
    command = [sys.executable, __file__, "--work", json.dumps(cases), str(out)]
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if inside:
        clusters = [Cluster(tuple(f"{host}:2222" for host in HOSTS), index) for index in range(2)]
        with ExitStack() as started:
            processes = [
                started.enter_context(
                    subprocess.Popen([*before, *command], env=environment | {VARIABLE: cluster.to_tf_config()})
                )
                for before, cluster in zip(inside, clusters, strict=True)
            ]
        failed = any(process.returncode for process in processes)
    elif workers == 1:
        failed = subprocess.run(command, check=False, env=environment).returncode
    else:
        failed = launch(command, workers, logs=folder, show=lambda line, is_error: None)
    if failed:
        raise SystemExit("a worker has failed")
    return json.loads(out.read_text())


def work(cases: Sequence[tuple[int, int]], out: Path) -> None:
    """Trains as one of the workers, and writes what its steps take.

    In a JSON file: of each case the seconds of a step `alone`, while all others train alone, too, of a `step` with
    sums, and the bytes `sent` in one; the seconds of a `sum` of all gradients and of a number (`message`).
    """
    from finetune.distribution.cluster import read_tf_config
    from finetune.distribution.greeting import open_channel

    cluster = read_tf_config()
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[(cluster.index if cluster else 0) % len(processors)]})
    channel = open_channel(cluster) if cluster else None
    import tensorflow as tf

    from finetune.distribution.workers import join, leaving, training_together

    workers = None
    with leaving():
        if channel:
            workers = join(channel)
        measured: dict[str, Any] = {"cases": [], "sum": 0.0, "message": 0.0}
        for rows, frozen in cases:
            case = {}
            for name, together in (("alone", nullcontext), ("step", training_together)):
                with together():
                    step = training_step(rows, frozen, workers)
                    if workers:
                        workers.channel.exchange(None, "the measurement of a step")
                    case[name], case["sent"] = seconds_of(step)
            measured["cases"].append(case)
        if workers:
            gradients = [tf.ones((WIDTH, WIDTH)), tf.ones((WIDTH,))] * LAYERS
            for name, tensors in (("sum", gradients), ("message", [tf.constant(1.0)])):
                call = tf.function(lambda tensors=tensors: workers.sums(tensors), autograph=False)
                measured[name] = seconds_of(call)[0]
        if workers is None or workers.is_chief:
            out.write_text(json.dumps(measured))


def training_step(rows: int, frozen: int, workers: Any) -> Callable[[], Any]:
    """Returns what makes a step of a network of which the first layers are frozen, on a worker's part of the rows."""
    import keras
    import tensorflow as tf

    from finetune import GroupedOptimizer
    from finetune.data.batches import training_batches
    from finetune.training.fast.fast_loop import train_function

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((WIDTH,)), *(keras.layers.Dense(WIDTH) for _ in range(LAYERS))])
    for layer in model.layers[:frozen]:
        layer.trainable = False
    model.compile(GroupedOptimizer([(keras.optimizers.SGD(1e-3), model.layers[frozen:])]), "mse")
    x = tf.random.stateless_normal((2 * rows, WIDTH), (0, 1))
    share = workers.share if workers else (0, 1)
    batches = iter(training_batches(x, x, batch_size=rows, shuffle=False, share=share))
    model.optimizer.build(model.trainable_variables)
    function = train_function(model)
    return lambda: function(batches)


def seconds_of(call: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds that a call takes, and the bytes that it sends.

    The first calls compile. Of the others it is the lower quartile: what else the machine does only adds to it.
    """
    for _ in range(4):
        call()
    sent, seconds = sent_bytes(), []
    for _ in range(STEPS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[STEPS // 4], (sent_bytes() - sent) / STEPS


def write(path: Path, text: str) -> None:
    """Writes the tables between the marks of a page.

    Raises:
        SystemExit: The page has no marks.
    """
    before, begins, rest = path.read_text().partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not (begins and ends):
        raise SystemExit(f"`{path}` has no lines `{MARKS[0].strip()}` and `{MARKS[1].strip()}` to write between.")
    path.write_text(f"{before}{begins}{text}{ends}{after}")


if __name__ == "__main__":
    main()
