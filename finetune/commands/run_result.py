"""What a run has produced: as an object, as `result.json`, and on the console."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.recipe.schema import FORMAT
from finetune.results.run_folder import write_json
from finetune.results.tables import class_results_table
from finetune.training.class_results import worst_classes
from finetune.training.phases.records import PhaseRecord

_CLASSES_SHOWN = 12


@dataclass(frozen=True)
class RunResult:
    """What a run has produced.

    Attributes:
        folder: The run folder.
        batch_size: Rows in a batch.
        metrics: Loss and metrics on the test examples after training, by name.
        metrics_before: The same before training; empty without `train.evaluate_before`.
        rows_before: How many test rows these are of; `None` where all.
        metrics_of_mean: The same of the mean of the training targets as the answer for every row; empty where targets
            are not in memory.
        classes: Test rows, recall and precision of each class by its name, for each output by its name.
        frozen_unchanged: Whether every frozen tensor is bit-identical to before.
        frozen_tensors: The number of tensors compared for that, moving statistics included.
        not_opened: Why `model.keras` does not open with plain Keras, and what to do; empty where it does.
        left_out: What of the loss and the metrics plain Keras does not have, and so `model.keras` either, as sentences.
        native: How many layers ran a native kernel, by the name of their class (`layers`), and which `functions` of
            Keras did; `None` with `train.kernels: exact`.
        keras_loop: Why Keras' own loop made the steps, and not the fast one; empty where it did not.
        mixed_precision: Which type `train.mixed_precision: auto` chose, and why; empty where nothing was chosen.
        warnings: What does not fail a run and should be known, such as a loss that has become far larger.
        skipped_steps: How many steps were left out as their gradients were not finite; `None` without
            `train.non_finite`.
        seconds: Wall time of each stage.
        data_wait: Share of the time of the training steps that was spent waiting for rows; `None` where they are in
            memory.
        phases: A record for each phase; empty where the recipe has no phases.
        kept: Metric, value and place of the best weights, which the model has; `None` if it has those of the end.
        averaged: What of the weights was averaged, and what it is worth; `None` without `train.average`.
        extended_from: The folder, epochs and metrics of each end that the run had before it was extended.
        thresholds: The probability from which a row has a label, by the names of output and label; empty where rows
            have a single class, or none validates.
        model: The fine-tuned model.
    """

    folder: Path
    batch_size: int
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    rows_before: int | None
    metrics_of_mean: dict[str, float]
    classes: dict[str, dict[str, Any]]
    frozen_unchanged: bool
    frozen_tensors: int
    not_opened: str
    left_out: tuple[str, ...]
    native: dict[str, Any] | None
    keras_loop: str
    mixed_precision: str = field(default="", kw_only=True)
    warnings: tuple[str, ...]
    skipped_steps: int | None
    seconds: dict[str, float]
    data_wait: float | None
    phases: tuple[PhaseRecord, ...] = field(repr=False)
    extended_from: tuple[dict[str, Any], ...] = field(repr=False)
    kept: dict[str, Any] | None
    averaged: dict[str, Any] | None
    thresholds: dict[str, dict[str, float]]
    model: keras.Model = field(repr=False)


def write_result(result: RunResult) -> None:
    """Writes `result.json`: all but the model, and the folder, which may be moved."""
    names = ("metrics", "metrics_before", "metrics_of_mean", "classes", "frozen_unchanged", "frozen_tensors", "seconds")
    names += ("batch_size",)
    phases = {"phases": [record.to_json() for record in result.phases]} if result.phases else {}
    skipped = {} if result.skipped_steps is None else {"skipped_steps": result.skipped_steps}
    part = {} if result.rows_before is None else {"rows_before": result.rows_before}
    kernels = {"kernels": "exact" if result.native is None else {"native": result.native}}
    waited = {} if result.data_wait is None else {"data_wait": result.data_wait}
    problem: dict[str, Any] = {
        name: text for name in ("not_opened", "keras_loop", "mixed_precision") if (text := getattr(result, name))
    }
    problem |= {name: of for name in ("kept", "averaged", "thresholds") if (of := getattr(result, name))}
    lists = ("extended_from", "warnings", "left_out")
    problem |= {name: list(of) for name in lists if (of := getattr(result, name))}
    write_json(
        result.folder / "result.json",
        {
            "format": FORMAT,
            **{name: getattr(result, name) for name in names},
            **kernels,
            **part,
            **waited,
            **skipped,
            **problem,
            **phases,
        },
    )


def print_result(result: RunResult, console: Console) -> None:
    """Prints what came of a run.

    Args:
        result: What `run` returns.
        console: Where to print.
    """
    for name, value in result.metrics.items():
        before = f"  (before: {result.metrics_before[name]:.4f})" if result.metrics_before else ""
        console.print(f"test {name}: {value:.4f}{before}")
    if score := ", ".join(f"{name} {value:.4f}" for name, value in result.metrics_of_mean.items()):
        console.print(f"without inputs: {score}  (the mean of the training targets as the answer for every row)")
    for output, classes in result.classes.items():
        print_class_results(classes, output, console)
    if any(phase.frozen_tensors for phase in result.phases):
        console.print("proof: the tensors frozen in each phase are bit-identical after it")
    if result.frozen_tensors:
        console.print(f"proof: all {result.frozen_tensors} frozen tensors are bit-identical to the start")


def print_class_results(classes: Mapping[str, Any], output: str, console: Console, rows: str = "test") -> None:
    """Prints recall and precision of each class of an output, or of the worst where there are many.

    Args:
        classes: What `RunResult.classes` says about the output.
        output: Name of the output; empty for the only one.
        console: Where to print.
        rows: Heads the column with their number.
    """
    shown = classes if len(classes) <= _CLASSES_SHOWN else worst_classes(classes, _CLASSES_SHOWN // 2)
    console.print(class_results_table(shown, output, rows))
    if len(shown) < len(classes):
        console.print(
            f"{len(classes)} classes; shown are the {len(shown)} with the least recall. `result.json` has all"
        )
