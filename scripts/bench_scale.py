#!/usr/bin/env python3
"""Measures how steps of several workers of this machine take longer, and predicts how many machines would do.

Each number of workers is started as real processes, which train a stack of dense layers with the fast loop. Two
measures: *strong* scaling, where the global batch stays and each worker has a smaller part, and *weak* scaling, where
each worker has as many rows as one had. All workers share the cores of this machine, so only ratios mean something,
and those only while it has as many idle cores as workers.

    python scripts/bench_scale.py                                   # measure, and compare with the model
    python scripts/bench_scale.py --predict --step-ms 250 --megabytes 100 --gbit 25 --rows 32

The model. A worker's step on n rows takes `fixed + row * n`. Then the workers sum M bytes in a ring: each sends
`2 (W - 1) / W * M`, in `2 (W - 1)` messages one after another:

    step(W, n) = fixed + row * n + 2 (W - 1) / W * M / bandwidth + 2 (W - 1) * latency

M is 4 bytes for each trained weight: frozen groups send nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

WIDTH, LAYERS, ROWS, STEPS = 512, 4, 256, 40
PREDICTED = (1, 8, 32, 128, 512, 1024)
FROZEN_SHARES = (0.0, 0.5, 0.9, 0.99)


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
        sent = 2 * (workers - 1) / workers * megabytes * 1e6 / self.bandwidth
        return self.fixed + self.row * rows + sent + 2 * (workers - 1) * self.latency


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


def main() -> None:
    """Measures, or predicts, or is a worker."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--predict", action="store_true", help="print the model for the costs that follow alone")
    parser.add_argument("--step-ms", type=float, default=250.0, help="of a step of one worker")
    parser.add_argument("--fixed-share", type=float, default=0.05, help="of that, what does not depend on the rows")
    parser.add_argument("--rows", type=int, default=32, help="of a worker")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of all weights")
    parser.add_argument("--gbit", type=float, default=25.0, help="a second between two machines")
    parser.add_argument("--latency-us", type=float, default=30.0, help="of a message")
    parser.add_argument("--work", nargs=2, metavar=("ROWS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(int(options.work[0]), Path(options.work[1]))
    elif options.predict:
        seconds = options.step_ms / 1e3
        fixed, row = options.fixed_share * seconds, (1 - options.fixed_share) * seconds / options.rows
        costs = Costs(fixed, row, options.gbit * 1e9 / 8, options.latency_us / 1e6)
        print_predictions(costs, options.rows, options.megabytes)
    else:
        measure(options.workers)


def measure(numbers: list[int]) -> None:
    """Starts the workers of each number, and prints what their steps take beside what the model says."""
    alone = {rows: seconds_of_step(1, rows)[0] for rows in (ROWS // 4, ROWS)}
    row = max(0.0, (alone[ROWS] - alone[ROWS // 4]) / (ROWS - ROWS // 4))
    measured = {(count, rows): seconds_of_step(count, rows) for count in numbers for rows in (ROWS, count * ROWS)}
    two = measured.get((2, ROWS)) or seconds_of_step(2, ROWS)
    megabytes = 4 * (LAYERS * (WIDTH + 1) * WIDTH) / 1e6
    sums, messages = two[1:]
    costs = Costs(alone[ROWS] - row * ROWS, row, megabytes * 1e6 / max(sums - messages, 1e-9), messages / 2)
    print(f"{megabytes:.1f} MB of gradients; in a sum of two {sums * 1e3:.2f} ms, of a number {messages * 1e3:.2f} ms")
    print("workers  rows  ms a step  of one worker  model")
    for (count, rows), (seconds, *_) in measured.items():
        predicted = costs.step(count, rows / count, megabytes)
        of_one, of_model = seconds / alone[ROWS], predicted / alone[ROWS]
        print(f"{count:7}  {rows:4}  {seconds * 1e3:9.2f}  {of_one:13.2f}  {of_model:5.2f}")


def print_predictions(costs: Costs, rows: int, megabytes: float) -> None:
    """Prints the efficiency for several numbers of workers and shares of frozen weights."""
    for weak in (True, False):
        total = f"{rows} rows on each worker" if weak else f"{rows * 8} rows on all together"
        print(f"{'weak' if weak else 'strong'} scaling, {total}; efficiency by the frozen share of {megabytes:g} MB")
        print("workers  " + "  ".join(f"{share:5.0%}" for share in FROZEN_SHARES))
        for workers in PREDICTED:
            values = [
                efficiency(costs, workers, rows if weak else rows * 8, megabytes * (1 - share), weak=weak)
                for share in FROZEN_SHARES
            ]
            print(f"{workers:7}  " + "  ".join(f"{value:5.2f}" for value in values))


def seconds_of_step(workers: int, rows: int) -> tuple[float, float, float]:
    """Returns the seconds of a step, of a sum of all gradients, and of the sum of a single number."""
    from finetune.distribution.worker_processes import launch

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, __file__, "--work", str(rows), str(out)]
        if workers == 1:
            subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if k != "TF_CONFIG"})
        elif launch(command, workers, logs=Path(folder), show=lambda line, is_error: None):
            raise SystemExit("a worker has failed")
        step, whole, message = json.loads(out.read_text())
        return step, whole, message


def work(rows: int, out: Path) -> None:
    """Trains as one of the workers, and writes what its steps take."""
    from finetune.distribution.cluster import read_tf_config
    from finetune.distribution.greeting import open_channel
    from finetune.distribution.workers import join, leaving, training_together

    cluster = read_tf_config()
    channel = open_channel(cluster) if cluster else None
    import keras
    import tensorflow as tf

    from finetune import GroupedOptimizer
    from finetune.data.batches import training_batches
    from finetune.training.fast.fast_loop import train_function

    with leaving(), training_together() if channel is None else _joined(join, channel, training_together) as workers:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((WIDTH,)), *(keras.layers.Dense(WIDTH) for _ in range(LAYERS))])
        model.compile(GroupedOptimizer([(keras.optimizers.SGD(1e-3), model)]), "mse")
        x = tf.random.stateless_normal((2 * rows, WIDTH), (0, 1))
        share = workers.share if workers else (0, 1)
        batches = iter(training_batches(x, x, batch_size=rows, shuffle=False, share=share))
        model.optimizer.build(model.trainable_variables)
        function = train_function(model)
        steps = _seconds(lambda: function(batches), STEPS)
        whole, message = 0.0, 0.0
        if workers:
            gradients = [tf.ones(variable.shape) for variable in model.trainable_variables]
            whole = _seconds(tf.function(lambda: workers.sums(gradients)[0][0], autograph=False), STEPS)
            message = _seconds(tf.function(lambda: workers.sums([tf.constant(1.0)]), autograph=False), STEPS)
        if share[0] == 0:
            out.write_text(json.dumps([steps, whole, message]))


def _joined(join, channel, together):
    join(channel)
    return together()


def _seconds(call, times: int) -> float:
    """Returns the median of the seconds that a call takes; the first ones compile."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds[times // 4 :])[len(seconds[times // 4 :]) // 2]


if __name__ == "__main__":
    main()
