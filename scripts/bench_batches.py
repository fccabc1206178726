#!/usr/bin/env python3
"""Measures what the training batches cost: the part of an epoch outside of the training steps.

The network and the data are those of `recipes/digits.yaml`: batches of 20, 5 steps an epoch, where the share
is largest. `fit` runs without callbacks; the steps alone run the same function on a batch that is already in memory.
All take turns, and each figure is the median over the rounds.

With `--seek`, how long it takes until the first batch is there, from its first, middle and last step, in an epoch early
and late, and for a worker's share: with so many rows.

    python scripts/bench_batches.py
    python scripts/bench_batches.py --seek 1000000 10000000
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from bench_step import machine

from finetune.data.batches import steps_per_epoch, training_batches
from finetune.examples.digits import small_cnn, uci_digits

EPOCHS, BATCH_SIZE = 20, 20
SEEK_BATCH = 256


def seconds(work: Callable[[], Any]) -> float:
    """Returns the seconds of an epoch, of which `work` runs 20."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / EPOCHS


def print_seeking(counts: Sequence[int], rounds: int) -> None:
    """Prints how long the first batch takes, by the number of rows and where training begins."""
    print("| rows | epoch | step | share | first batch, ms |\n|--:|--:|--:|---|--:|")
    for rows in counts:
        x = tf.range(rows)
        steps = steps_per_epoch(rows, SEEK_BATCH)
        places = [(epoch, step, (0, 1)) for epoch in (0, 1_000) for step in (0, steps // 2, steps - 1)]
        for epoch, step, share in [*places, (1_000, steps // 2, (1, 4))]:
            took = []
            for _ in range(rounds):
                begun = time.perf_counter()
                next(
                    iter(training_batches(x, x, batch_size=SEEK_BATCH, first_epoch=epoch, first_step=step, share=share))
                )
                took.append(1000 * (time.perf_counter() - begun))
            print(f"| {rows:,} | {epoch:,} | {step:,} | {share[0]} of {share[1]} | {statistics.median(took):.0f} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of 20 epochs each (default %(default)s)")
    parser.add_argument("--seek", type=int, nargs="*", help="measure the first batch alone, with so many rows")
    options = parser.parse_args(arguments)
    if options.seek is not None:
        print_seeking(options.seek or [10_000_000], options.rounds)
        print(f"\nOn {machine()}.")
        return 0
    examples, model = uci_digits(train_rows=100), small_cnn()
    x, y = examples.x_train, examples.y_train
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    steps = steps_per_epoch(len(y), BATCH_SIZE)
    batches = training_batches(x, y, batch_size=BATCH_SIZE)
    step: Any = model
    in_memory = iter(tf.data.Dataset.from_tensors((x[:BATCH_SIZE], y[:BATCH_SIZE])).cache().repeat().prefetch(2))
    endless = iter(batches)
    work = {
        "`fit` on arrays": lambda: model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0),
        "`fit` on our batches": lambda: model.fit(
            batches, steps_per_epoch=steps, epochs=EPOCHS, shuffle=False, verbose=0
        ),
        "our batches, steps alone": lambda: [step.train_function(endless) for _ in range(EPOCHS * steps)],
        "a batch in memory, steps alone": lambda: [step.train_function(in_memory) for _ in range(EPOCHS * steps)],
    }
    for run in work.values():
        run()  # compiles
    rounds = [[seconds(run) for run in work.values()] for _ in range(options.rounds)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print("| | epoch, ms | beside the step |\n|---|--:|--:|")
    for name, value in zip(work, medians, strict=True):
        print(f"| {name} | {1000 * value:.1f} | {1 - medians[-1] / value:.1%} |")
    print(f"\nOn {machine()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
