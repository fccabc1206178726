#!/usr/bin/env python3
"""Compares ways of fine-tuning on eight transfer tasks, each with few rows and with more.

On every seed (split of the rows, fresh head, order of the batches) every way that has a peak rate is trained at each
rate of a grid; the rate that is best on validation rows is chosen, and its accuracy on test rows counts. Ways without a
search are trained once. All make the same number of steps with the same optimizer. Every way on every seed is a line of
a file; one that is in the file is not repeated, so the same command goes on where it was stopped.

    python scripts/bench_transfer.py --results transfer.jsonl                                  # train, or go on
    python scripts/bench_transfer.py --from transfer.jsonl --markdown docs/transfer.md         # tables and plots alone
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf
from plot_step import fill
from transfer_tables import SEARCH, draw, scores, text, with_search
from transfer_tasks import TASKS, Task, start
from transfer_training import Trainer, decayed

import finetune
from finetune.training.phases.named_strategies import phases_of_strategy

EPOCHS = (8, 12)  # with few rows, and with more
Phases = list[finetune.Phase]
Cell = dict[str, Any]  # an arm at all its peak rates on one seed, see `Runner.cell`
Key = tuple[str, int, str, int]


# -- What is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the phases of a training depend on.

    Attributes:
        groups: The layer groups, input to output.
        peak: The peak rate; `None` for an arm without a search.
        measured: Runs an LR range test and returns its suggestion.
        epochs: Length of the training.
        steps_per_epoch: Batches in an epoch.
    """

    groups: Sequence[Any]
    peak: float | None
    measured: Callable[[], float | None]
    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Steps of the training."""
        return self.epochs * self.steps_per_epoch

    @property
    def names(self) -> list[str]:
        """Names of the groups."""
        return [group.name for group in self.groups]


@dataclass(frozen=True)
class Arm:
    """A way of fine-tuning.

    Attributes:
        phases: Makes its phases.
        restored: Whether the pretrained weights are restored.
        is_searched: Whether it is trained at every rate of the grid.
    """

    phases: Callable[[Setting], Phases]
    restored: bool = True
    is_searched: bool = True


def all_groups(decay: float = 1.0) -> Callable[[Setting], Phases]:
    """All groups all the time, a group's rate `decay` times that of the next."""

    def phases(of: Setting) -> Phases:
        assert of.peak
        steps, last = of.steps, len(of.names) - 1
        rates = {name: decayed(of.peak * decay ** (last - place), steps) for place, name in enumerate(of.names)}
        return [finetune.Phase(epochs=of.epochs, rates=rates)]

    return phases


def head_only(of: Setting) -> Phases:
    """The head alone."""
    assert of.peak
    rates = {of.names[-1]: decayed(of.peak, of.steps)}
    return [finetune.Phase(of.names[-1], epochs=of.epochs, rates=rates)]


def strategy(name: str) -> Callable[[Setting], Phases]:
    """A strategy by its name in recipes; groups that it gives no schedule have that of the other arms in each phase."""

    def phases(of: Setting) -> Phases:
        assert of.peak
        peaks = dict.fromkeys(of.names, of.peak)
        written = phases_of_strategy(name, of.groups, peaks, epochs=of.epochs, steps_per_epoch=of.steps_per_epoch)
        return [with_rates(phase, of) for phase in written]

    return phases


def with_rates(phase: finetune.Phase, of: Setting) -> finetune.Phase:
    """Returns a phase whose groups all have rates."""
    assert phase.epochs
    assert of.peak
    if phase.auto_rgn or phase.rates:
        return phase
    rate = decayed(of.peak, phase.epochs * of.steps_per_epoch)
    rates = dict.fromkeys(phase.names(of.groups), rate)
    return finetune.Phase(phase.train, epochs=phase.epochs, rates=rates, clock="phase")


def head_first(probe: float) -> Callable[[Setting], Phases]:
    """The head alone for a share of the epochs, then all, at one rate and under one schedule over the run."""

    def phases(of: Setting) -> Phases:
        assert of.peak
        first, last = max(1, round(of.epochs * probe)), of.names[-1]
        rate = decayed(of.peak, of.steps)
        return [
            finetune.Phase(last, epochs=first, rates={last: rate}),
            finetune.Phase(epochs=of.epochs - first, rates=dict.fromkeys(of.names, rate)),
        ]

    return phases


def at(rate: float, phases: Callable[[Setting], Phases]) -> Callable[[Setting], Phases]:
    """Phases at a rate that is not searched."""
    return lambda of: phases(replace(of, peak=rate))


def at_measured_rate(phases: Callable[[Setting], Phases], times: float = 1.0) -> Callable[[Setting], Phases]:
    """Phases at the rate that an LR range test suggests, or at 3e-3 where it suggests none; or so many times it."""
    return lambda of: phases(replace(of, peak=times * (of.measured() or 3e-3)))


ARMS = {
    "from scratch": Arm(all_groups(), restored=False),
    "head only": Arm(head_only),
    "uniform": Arm(all_groups()),
    "decay 0.9": Arm(all_groups(0.9)),
    "decay 0.8": Arm(all_groups(0.8)),
    "decay 1/2.6": Arm(all_groups(1 / 2.6)),
    "gradual unfreezing": Arm(strategy("gradual_unfreezing")),
    "LP-FT": Arm(strategy("lp_ft")),
    "Auto-RGN": Arm(strategy("auto_rgn")),
    "fine_tune": Arm(strategy("freeze_then_all")),
    "default before": Arm(at(1e-3, head_first(0.2)), is_searched=False),
    "measured rate": Arm(at_measured_rate(all_groups()), is_searched=False),
    "head first, measured rate": Arm(at_measured_rate(head_first(0.2)), is_searched=False),
    "three times the measured rate": Arm(at_measured_rate(all_groups(), 3.0), is_searched=False),
}


# -- Training ---------------------------------------------------------------------------------------------------------


class Runner:
    """Trains cells; what was compiled for a task is kept for all that follows."""

    def __init__(self) -> None:
        self.trainers: dict[str, Trainer] = {}
        self.measured: dict[tuple[str, int, int], float | None] = {}  # the latest LR range test

    def cell(self, key: Key) -> Cell:
        """Trains an arm at all its peak rates, on one seed.

        Returns:
            The key; the peak rates; at each of them the accuracy on validation rows, the cross-entropy of few of them
            (a quarter as many as are trained on), and the accuracy on test rows; the processor seconds of training.
        """
        name, rows, arm, seed = key
        task = TASKS[name]
        if name not in self.trainers:
            self.trainers[name] = trainer_of(task)
        trainer, split = self.trainers[name], task.split(rows, seed)
        peaks = list(task.rates) if ARMS[arm].is_searched else [None]
        cell: Cell = {"task": name, "rows": rows, "arm": arm, "seed": seed, "peaks": peaks}
        cell |= {"validation": [], "few": [], "test": [], "seconds": []}
        for peak in peaks:
            began = time.process_time()
            trainer.begin(start(task, seed, restored=ARMS[arm].restored))
            epochs = EPOCHS[task.sizes.index(rows)]

            def measured() -> float | None:
                if (name, rows, seed) not in self.measured:
                    self.measured = {(name, rows, seed): trainer.measured_rate(*split.train)}
                cell["measured"] = self.measured[name, rows, seed]
                return cell["measured"]

            setting = Setting(trainer.groups, peak, measured, epochs, task.steps_per_epoch)
            trainer.fit(*split.train, ARMS[arm].phases(setting), seed)
            cell["seconds"].append(round(time.process_time() - began, 2))
            right, losses = trainer.judge(*split.validation)
            cell["validation"].append(round(right, 4))
            cell["few"].append(round(float(losses[: max(8, rows // 4)].mean()), 4))
            cell["test"].append(round(trainer.judge(*split.test)[0], 4))
        return cell


def trainer_of(task: Task) -> Trainer:
    """Builds the network of a task, with its layer groups."""
    model = task.build()
    groups = finetune.resolve_groups(
        model, [finetune.Selector(name, prefixes=layers) for name, layers in task.groups.items()]
    )
    return Trainer(model, groups, task.steps_per_epoch, task.batch_size)


def key_of(cell: Cell) -> Key:
    """Returns what identifies a cell."""
    return cell["task"], cell["rows"], cell["arm"], cell["seed"]


def keys(seeds: Sequence[int], tasks: Sequence[str], arms: Sequence[str], sizes: Sequence[int]) -> list[Key]:
    """Returns all cells, seed by seed: where they are stopped, the seeds before are whole."""
    return [
        (name, TASKS[name].sizes[size], arm, seed) for seed in seeds for name in tasks for size in sizes for arm in arms
    ]


def read(path: Path) -> list[Cell]:
    """Returns the cells in a file; a last line that was cut off by a kill is none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def train(wanted: Sequence[Key], path: Path) -> None:
    """Trains the cells that the file does not have yet, and appends each to it."""
    known = read(path)
    path.write_text("".join(json.dumps(cell) + "\n" for cell in known), encoding="utf-8")  # without half a line
    missing = [key for key in wanted if key not in {key_of(cell) for cell in known}]
    runner, began = Runner(), time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for number, key in enumerate(missing, start=1):
            cell = runner.cell(key)
            file.write(json.dumps(cell) + "\n")
            file.flush()
            print(f"{time.monotonic() - began:5.0f} s  {number} of {len(missing)}: {cell}", file=sys.stderr, flush=True)


# -- The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is missing, or writes the tables and plots."""
    options = parse_options(arguments)
    if options.results:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # sums in one order, whatever the machine
        tf.config.threading.set_inter_op_parallelism_threads(1)
        wanted = [*keys(range(options.first_seed, options.seeds), options.tasks, options.arms, options.sizes)]
        train(wanted, options.results)
    all_scores = scores(with_search(read(options.read or options.results)))
    tables = text(all_scores, SEARCH)
    print(tables)
    if options.markdown:
        options.markdown.write_text(fill(options.markdown.read_text(), "figures", tables))
        draw(all_scores, options.markdown.parent / "images" / "transfer", SEARCH)
    return 0


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="file of all cells, a line of JSON each; it is gone on with")
    parser.add_argument("--from", type=Path, dest="read", help="a file that `--results` wrote: nothing is trained")
    parser.add_argument("--markdown", type=Path, help="page to put the tables into; the plot goes to images/ beside it")
    parser.add_argument("--seeds", type=int, default=5, help="seeds from 0 on")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed to begin with")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--sizes", type=int, nargs="+", choices=[0, 1], default=[0, 1], help="few rows, and more")
    options = parser.parse_args(arguments)
    if not options.results and not options.read:
        parser.error("name the file of results: `--results FILE` trains, `--from FILE` makes tables alone")
    return options


if __name__ == "__main__":
    sys.exit(main())
