"""`finetune run`: load, build, restore, plan, train, prove, save. The function `run` is the story; start there."""

import csv
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from math import nan
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.build.data import build_rows, precision
from finetune.build.kept_files import keep_files
from finetune.build.layout import Layout, build_layout
from finetune.build.source_keys import loss_names
from finetune.commands.changed_run import fit_in, former_ends, keep_former, plan_of_phases, report_carried
from finetune.commands.env import environment
from finetune.commands.kept_weights import average, best_keeper, collector, keep_checkpoints
from finetune.commands.lr_range import advice_on_rates, with_measured_rates, write_range_test
from finetune.commands.plan import print_plan
from finetune.commands.resume import FormerRun, check_same_data, check_same_start, find_former_run
from finetune.commands.run_report import predicted, write_facts, write_page, write_run_hashes
from finetune.data.examples import Split
from finetune.data.leaks import leaked_rows, warning_of_leaks
from finetune.data.row_checks import unreadable_rows_named
from finetune.data.target_facts import describe
from finetune.errors import DataError, MachineError, TrainingError, WriteError
from finetune.interruption import Stopped, stoppable
from finetune.recipe.error_places import located
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.losses import by_output
from finetune.recipe.schema import FORMAT
from finetune.results.plots import plot_training
from finetune.results.run_folder import (
    check_can_resume,
    check_room,
    check_run_folder,
    open_run_folder,
    write_json,
    write_text,
)
from finetune.results.run_log import RunLog
from finetune.results.tables import class_results_table, plan_text
from finetune.training.averaged_weights import said_of
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.class_results import results_of_classes, worst_classes
from finetune.training.constant_answer import score_of_constant
from finetune.training.data_wait import DataWait, advice_on_wait
from finetune.training.divergence import divergence, loss_of_guess
from finetune.training.evaluation_before import rows_before
from finetune.training.finite_weights import check_weights
from finetune.training.fit import SEE_WHERE, FitOptions, check_finite, last_weights, train
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.phase import frozen_in_all
from finetune.training.phases.records import PhaseRecord
from finetune.training.recalibrate import recalibrate as recalibrate_statistics
from finetune.training.rehearsal import EVALUATED_ROWS
from finetune.training.reopened import open_again
from finetune.training.saving import disk_need, save_model
from finetune.training.time_limit import TimeLimit
from finetune.training.try_examples import explained

_CLASSES_SHOWN = 12


@dataclass(frozen=True)
class RunResult:
    """What a run has produced.

    Attributes:
        folder: The run folder.
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
        keras_loop: Why Keras' own loop made the steps, and not the fast one; empty where it did not.
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
        model: The fine-tuned model.
    """

    folder: Path
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    rows_before: int | None
    metrics_of_mean: dict[str, float]
    classes: dict[str, dict[str, Any]]
    frozen_unchanged: bool
    frozen_tensors: int
    not_opened: str
    left_out: tuple[str, ...]
    keras_loop: str
    warnings: tuple[str, ...]
    skipped_steps: int | None
    seconds: dict[str, float]
    data_wait: float | None
    phases: tuple[PhaseRecord, ...] = field(repr=False)
    extended_from: tuple[dict[str, Any], ...] = field(repr=False)
    kept: dict[str, Any] | None
    averaged: dict[str, Any] | None
    model: keras.Model = field(repr=False)


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
    recalibrate: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Fine-tunes as a recipe says and writes the run folder.

    Args:
        recipe: Path of the recipe.
        out: The run folder; by default the first free `runs/<recipe>-<number>`.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        overwrite: Whether `out` may be a folder that is not empty.
        recalibrate: Whether moving statistics are estimated again after training, as the mean over all training rows.
        resume: Whether the run in `out` goes on where it was stopped or killed; without a run there, one begins.
        console: Where to print the progress; `None` prints nothing.

    Raises:
        FinetuneError: The input is wrong; nothing is written then.
        TrainingError: Training fails; the weights of the finished steps are saved.
        LockError: Another run writes the folder; nothing is written then.
        WriteError: A file cannot be written.
        Stopped: A signal asks the process to end: Ctrl-C, SIGTERM or SIGHUP. Its text says what was saved.
    """
    console, out = console or Console(quiet=True), None if out is None else Path(out)
    if resume:
        check_can_resume(out, overwrite=overwrite)
    with stoppable(), ExitStack() as held:
        log = held.enter_context(RunLog(console).attach())
        return _run(recipe, out, overrides, allow_code, overwrite, recalibrate, resume, console, held, log)


def _run(
    recipe: str | Path,
    out: Path | None,
    overrides: Sequence[str],
    allow_code: Sequence[str],
    overwrite: bool,
    recalibrate: bool,
    resume: bool,
    console: Console,
    held: ExitStack,
    log: RunLog,
) -> RunResult:
    """Does what `run` says; the lock of the run folder is `held` until the caller lets it go."""
    clock = _Clock()
    with clock("load"):
        loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
        check_run_folder(out, overwrite=overwrite, resume=resume)
        written, settings = dump_recipe(loaded, absolute_paths=True), loaded.train
        of_run = out is not None and Path(recipe).resolve() == (out / "recipe.yaml").resolve()
        former = find_former_run(out, loaded, of_run=of_run) if resume and out else None
        if former:
            loaded, written, settings = former.recipe, former.written, former.recipe.train
            clock.seconds, recalibrate = dict(former.document["seconds"]), former.document["recalibrate"]
            _announce(former, console)
    with precision(loaded):
        with clock("prepare"):
            layout = build_layout(loaded)
        range_test = None
        if layout.rates_to_measure:
            with clock("lr_range"):
                layout, range_test = with_measured_rates(layout, console)
        print_plan(layout, console, out=out)
        on_groups = advice_on_rates(layout, range_test, Path(recipe).parent)
        for sentence in on_groups:
            console.print(f"warning: {sentence}", highlight=False, markup=False)
        # Before training, and before anything is written: test examples that do not fit cost no training time.
        with (
            clock("evaluate"),
            located(layout.recipe, "data"),
            unreadable_rows_named(layout.examples),
            explained(DataError, "The model must be able to evaluate the test examples.", SEE_WHERE),
        ):
            of_before, every_row = _rows_before(layout), len(layout.examples.test)
            metrics_before = former.document["metrics_before"] if former else _evaluate(layout, of_before)
            if settings.evaluate_before is False:  # evaluated only to show that the rows fit
                metrics_before = {}
            elif len(of_before) < every_row:
                console.print(
                    f"before training: {len(of_before):,} of {every_row:,} test rows are evaluated, evenly spaced "
                    "(`train.evaluate_before: true` takes all)",
                    highlight=False,
                    markup=False,
                )
            metrics_of_mean = score_of_constant(layout.model, layout.examples)

        # Nothing has been written so far: a run that fails above leaves no folder.
        check_room(out or Path("runs"), *disk_need(layout.model, layout.length.epochs), overwrite=overwrite)
        # Checksums of all that no phase trains; each phase adds those of what it freezes.
        proof, frozen = FrozenRecords(), frozen_in_all(layout.model, layout.groups, layout.phases)
        checksums_before = proof.begin(frozen)
        plan = plan_of_phases(layout.phases, layout.groups, layout.length.steps_per_epoch)
        if former and out:
            before = former.document["checksums_before"]
            same = [*before] if not former.changes else [name for name in before if name in checksums_before]
            check_same_start(out, {name: before[name] for name in same}, checksums_before)
            if not any(re.match(r"data\b|train\.(loss|validation)", change.key) for change in former.changes):
                check_same_data(out, former.document["data"], _described(layout))
            if former.changes:
                fit_in(former.checkpoint, plan, former.changes)
                layout.model.optimizer.build(layout.model.trainable_variables)
                former.checkpoint.restore(layout.model)
                checksums_before = proof.begin(frozen) | {name: before[name] for name in same}
        opened_folder = open_run_folder(
            out, name=Path(recipe).stem, overwrite=overwrite or resume, removes=former is None
        )
        folder = held.enter_context(opened_folder)
        log.open(folder / "run.log", append=former is not None)
        weights = LastWeights(last_weights(folder))
        held.enter_context(_kept_at_a_signal(weights))
        if former and former.changes:
            kept = keep_former(folder) if former.is_finished else ""
            report_carried(folder, former.checkpoint.carried or (), former.changes, kept, console)
        if not former or former.changes:
            _write_plan(folder, layout, console)
            (folder / "result.json").unlink(missing_ok=True)  # last: until here the run is as it was
            if range_test:
                write_range_test(range_test, folder / "plots")
        resolved = dump_recipe(layout.recipe, absolute_paths=True)
        checkpoint = former.checkpoint if former else Checkpoint(folder / "checkpoints")
        checkpoint.every_seconds, checkpoint.every_steps = settings.checkpoint_seconds, settings.checkpoint_steps
        checkpoint.more = lambda: {
            "recipe": written,
            "resolved": resolved,
            "epochs": layout.length.epochs,
            "plan_of_phases": plan,
            "extensions": [extension.model_dump() for extension in layout.recipe.train.extensions],
            "recalibrate": recalibrate,
            "data": _described(layout),
            "metrics_before": metrics_before,
            "checksums_before": checksums_before,
            "seconds": clock.so_far(),
        }
        wait, answer = DataWait(), loaded.train.non_finite
        non_finite = NonFiniteGradients(answer, layout.groups) if answer else None
        keep_best, collect, time_limit = best_keeper(settings), collector(settings), None
        if settings.time_limit_seconds:
            time_limit = TimeLimit(settings.time_limit_seconds, layout.length.steps)
        with clock("train"), located(layout.recipe, "data"), unreadable_rows_named(layout.examples):
            records = train(
                layout.model,
                layout.groups,
                layout.phases,
                layout.examples,
                fit_options(layout),
                folder=folder,
                console=console,
                proof=proof,
                wait=wait,
                weights=weights,
                checkpoint=checkpoint,
                non_finite=non_finite,
                advice=on_groups,
                keepers=[keeper for keeper in (keep_best, collect) if keeper],
                time_limit=time_limit,
            )
        averaged = None
        if keep_best and (kept_best := keep_best.restore(layout.model)):
            console.print(kept_best, highlight=False, markup=False)
        if collect and collect.kept:
            with clock("average"):
                averaged = average(layout, collect)
            console.print(said_of(averaged), highlight=False, markup=False)
        if advice := advice_on_wait(wait.share, layout.examples, keeps=loaded.data.keep != "off"):
            console.print(advice, highlight=False, markup=False)
        if recalibrate:  # statistics of trained groups alone, so the proof still holds
            with clock("recalibrate"):
                count = recalibrate_statistics(layout.model, layout.groups, build_rows(layout.recipe, layout.examples))
            console.print(f"recalibrated: the statistics of {count} BatchNormalization layers", highlight=False)
        check_weights(layout.tree.leaves, layout.groups, "at the end of training")
        with clock("evaluate"):
            metrics = _evaluate(layout)
            predictions = predicted(layout, console)
            classes = results_of_classes(layout.model, layout.examples, predictions) if predictions else {}
            # The loss of a training step is that before its update, so the last update shows only here.
            check_finite(metrics["loss"], "on the test examples after training", folder)
        with clock("save"):
            left_out = _save(layout.model, folder, weights)
            opened = open_again(folder / "model.keras")
        with clock("plot"):
            draw_curves(folder, records)
        whole_run = proof.end("the run", frozen, checksums_before)
        with clock("save"):
            not_opened = opened()
        with clock("report"):
            write_facts(folder, layout, predictions, console)
        diverged = divergence(metrics_before.get("loss", nan), metrics["loss"], _loss_of_guess(layout))
        skipped = non_finite.summary() if non_finite else ""
        cut_off = time_limit.summary() if time_limit else ""
        warnings = tuple(filter(None, (not_opened, skipped, diverged, cut_off, *on_groups)))
        for warning in warnings:
            console.print(f"warning: {warning}", markup=False)
        for sentence in left_out:
            console.print(f"model.keras: {sentence}", markup=False, highlight=False)

    result = RunResult(
        folder=folder,
        metrics=metrics,
        metrics_before=metrics_before,
        rows_before=len(of_before) if metrics_before and len(of_before) < every_row else None,
        metrics_of_mean=metrics_of_mean,
        classes=classes,
        frozen_unchanged=proof.holds,
        frozen_tensors=whole_run.tensors,
        not_opened=not_opened,
        left_out=left_out,
        keras_loop="; ".join(dict.fromkeys(record.keras_loop for record in records if record.keras_loop)),
        warnings=warnings,
        skipped_steps=non_finite.skipped if non_finite else None,
        seconds=clock.seconds,
        data_wait=None if wait.share is None else round(wait.share, 4),
        phases=records if layout.shows_phases else (),
        model=layout.model,
        extended_from=former_ends(folder),
        kept=keep_best.to_json() if keep_best else None,
        averaged=averaged,
    )
    _write_result(result)
    write_page(folder, layout, console)
    keep_checkpoints(checkpoint, settings, layout.model, weights, console)
    write_run_hashes(folder, layout, console, recalibrate=recalibrate)
    # Last, so that the folder shows what has happened even where the proof fails.
    proof.check()
    return result


@contextmanager
def _kept_at_a_signal(weights: LastWeights) -> Iterator[None]:
    """Lets a signal before or after training say which weights are saved."""
    try:
        yield
    except Stopped as stop:
        stop.kept = stop.kept or weights.keep()
        raise


def fit_options(layout: Layout) -> FitOptions:
    """Takes from `train` whatever `FitOptions` has a field for, so that no key is forgotten."""
    names = {option.name for option in fields(FitOptions)}
    options: dict[str, Any] = {name: value for name, value in layout.recipe.train if name in names}
    options |= {"epochs": layout.length.epochs, "steps_per_epoch": layout.length.steps_per_epoch}
    return FitOptions(**options, seed=layout.recipe.seed, announce_phases=layout.recipe.phases is not None)


def _rows_before(layout: Layout) -> Split:
    settings = layout.recipe.train
    trained = layout.length.steps * settings.batch_size
    return rows_before(layout.examples.test, settings.evaluate_before, trained=trained, batch_size=EVALUATED_ROWS)


def _evaluate(layout: Layout, rows: Split | None = None) -> dict[str, float]:
    batches = (rows or layout.examples.test).batches(EVALUATED_ROWS)
    metrics = layout.model.evaluate(batches, verbose=0, return_dict=True)
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda name: name != "loss")}  # loss first


def _loss_of_guess(layout: Layout) -> float | None:
    losses, shape = by_output(layout.recipe.train.loss), getattr(layout.model, "output_shape", ())
    is_single = list(losses) == [""] and isinstance(shape, tuple)  # a class of the user's own may not say its shape
    return loss_of_guess(losses[""].name, next(iter(shape[::-1]), None)) if is_single else None


def print_class_results(classes: Mapping[str, Any], output: str, console: Console) -> None:
    """Prints recall and precision of each class of an output, or of the worst where there are many.

    Args:
        classes: What `RunResult.classes` says about the output.
        output: Name of the output; empty for the only one.
        console: Where to print.
    """
    shown = classes if len(classes) <= _CLASSES_SHOWN else worst_classes(classes, _CLASSES_SHOWN // 2)
    console.print(class_results_table(shown, output))
    if len(shown) < len(classes):
        console.print(
            f"{len(classes)} classes; shown are the {len(shown)} with the least recall. `result.json` has all"
        )


def _save(model: keras.Model, folder: Path, weights: LastWeights) -> tuple[str, ...]:
    advice = f"{weights.keep()} Correct the `get_config` of the model or layer to save the whole model."
    rule = "A trained model is saved whole, so that plain Keras can load it."
    try:
        with explained(TrainingError, rule, advice):
            return save_model(model, folder / "model.keras")
    except (WriteError, MachineError) as error:
        raise type(error)(f"{error} {weights.keep()}") from error


def draw_curves(folder: Path, records: Sequence[PhaseRecord]) -> None:
    """Draws loss, metrics and learning rates over the epochs into `plots/training.png` and `.svg`."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    trained = {record.number: record.train for record in records}
    plot_training(rows, trained=trained, path=folder / "plots" / "training")


def _announce(former: FormerRun, console: Console) -> None:
    place, damaged = former.checkpoint.position, former.checkpoint.damaged
    for path in damaged:
        console.print(f"warning: `{path}` is damaged, so the checkpoint before it is taken", markup=False)
    where = f"epoch {place.epoch + 1}" + (f", step {place.step + 1}" if place.step else "")
    console.print(f"going on at {where} from `{former.checkpoint.path}`", highlight=False, markup=False)


def _described(layout: Layout) -> dict[str, Any]:
    """Returns what `data.json` says of the examples, as JSON has it."""
    return json.loads(json.dumps(describe(layout.examples, loss_names(layout.recipe))))


def _write_plan(folder: Path, layout: Layout, console: Console) -> None:
    """Writes what is known before training."""
    leaked = leaked_rows(layout.examples)
    described = describe(layout.examples, loss_names(layout.recipe))
    write_json(folder / "data.json", described | ({"leaked_rows": leaked} if leaked else {}))
    if leaked:
        console.print(warning_of_leaks(leaked, layout.examples), highlight=False, markup=False)
    plan = layout.plan.to_json()
    write_text(folder / "recipe.yaml", dump_recipe(layout.recipe, absolute_paths=True))
    keep_files(layout.recipe, folder)
    write_text(folder / "plan.txt", plan_text(plan))
    write_json(folder / "plan.json", plan)
    write_json(folder / "restore.json", layout.restored.to_json() if layout.restored else None)
    write_json(folder / "environment.json", environment())


def _write_result(result: RunResult) -> None:
    names = ("metrics", "metrics_before", "metrics_of_mean", "classes", "frozen_unchanged", "frozen_tensors", "seconds")
    # Not the model, nor the folder, which may be moved.
    phases = {"phases": [record.to_json() for record in result.phases]} if result.phases else {}
    skipped = {} if result.skipped_steps is None else {"skipped_steps": result.skipped_steps}
    part = {} if result.rows_before is None else {"rows_before": result.rows_before}
    waited = {} if result.data_wait is None else {"data_wait": result.data_wait}
    problem: dict[str, Any] = {name: text for name in ("not_opened", "keras_loop") if (text := getattr(result, name))}
    problem |= {name: of for name in ("kept", "averaged") if (of := getattr(result, name))}
    lists = ("extended_from", "warnings", "left_out")
    problem |= {name: list(of) for name in lists if (of := getattr(result, name))}
    write_json(
        result.folder / "result.json",
        {
            "format": FORMAT,
            **{name: getattr(result, name) for name in names},
            **part,
            **waited,
            **skipped,
            **problem,
            **phases,
        },
    )


class _Clock:
    """Adds up the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running = ("", 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._running = stage, time.monotonic()
        yield
        self.seconds, self._running = self.so_far(), ("", 0.0)

    def so_far(self) -> dict[str, float]:
        """Returns the seconds of each stage, also of the one that has not ended."""
        stage, start = self._running
        if not stage:
            return self.seconds
        return self.seconds | {stage: round(self.seconds.get(stage, 0.0) + time.monotonic() - start, 3)}
