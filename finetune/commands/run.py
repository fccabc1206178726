"""`finetune run`: load, build, restore, plan, train, prove, save.

The function `_run` is the story; start there. Each of its steps is a function below it, in its order.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from math import nan
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from finetune.build.data import batch_rows, build_rows, precision
from finetune.build.distribute import build_distribution, with_global_batch
from finetune.build.layout import Layout, build_layout
from finetune.build.mixed_precision import with_measured_precision
from finetune.commands.changed_run import (
    advice_on_split,
    check_network,
    fit_in,
    former_ends,
    has_other_targets,
    keep_former,
    plan_of_phases,
    report_carried,
)
from finetune.commands.kept_weights import average, best_keeper, collector, keep_checkpoints
from finetune.commands.lr_range import advice_on_rates, with_measured_rates, write_range_test
from finetune.commands.plan import disk_need_of, print_plan
from finetune.commands.resume import FormerRun, check_same_data, check_same_start, find_former_run
from finetune.commands.run_report import predicted, write_facts, write_page, write_run_hashes
from finetune.commands.run_result import RunResult, write_result
from finetune.commands.several_workers import check_same_layout, common_clock
from finetune.commands.stage_clock import StageClock
from finetune.commands.written_files import described, draw_curves, write_model, write_plan
from finetune.data.examples import Split
from finetune.data.row_checks import unreadable_rows_named
from finetune.errors import DataError
from finetune.interruption import Stopped, stoppable
from finetune.kernels.native_kernels import NativeLayers, forget_traces
from finetune.recipe.error_places import located
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.losses import by_output
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import ENDING_FILE, check_can_resume, check_room, check_run_folder, open_run_folder
from finetune.results.run_log import RunLog
from finetune.training.averaged_weights import said_of
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.class_results import results_of_classes
from finetune.training.constant_answer import score_of_constant
from finetune.training.data_wait import DataWait, advice_on_wait
from finetune.training.divergence import divergence, loss_of_guess
from finetune.training.evaluation_before import rows_before
from finetune.training.finite_weights import check_weights
from finetune.training.fit import SEE_WHERE, FitOptions, check_finite, last_weights, train
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.label_thresholds import label_thresholds
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.phase import frozen_in_all
from finetune.training.phases.records import PhaseRecord
from finetune.training.recalibrate import recalibrate as recalibrate_statistics
from finetune.training.rehearsal import EVALUATED_ROWS
from finetune.training.reopened import open_again
from finetune.training.time_limit import TimeLimit
from finetune.training.trackers import Trackers
from finetune.training.try_examples import explained


@dataclass(frozen=True)
class _Asked:
    """What the caller of `run` asks for."""

    recipe: Path
    out: Path | None
    overrides: Sequence[str]
    allow_code: Sequence[str]
    overwrite: bool
    recalibrate: bool
    resume: bool
    other_data: bool
    console: Console
    is_chief: bool = True

    def say(self, sentence: str) -> None:
        """Prints a sentence as it is."""
        self.console.print(sentence, highlight=False, markup=False)


@dataclass(frozen=True)
class _Begun:
    """What is known before the network is built: the recipe, its text, and the run that goes on, if one does."""

    recipe: Recipe
    written: str
    recalibrate: bool
    former: FormerRun | None


@dataclass(frozen=True)
class _Before:
    """The figures before training, and the checksums of what no phase trains."""

    metrics: dict[str, float]
    rows: int | None
    metrics_of_mean: dict[str, float]
    proof: FrozenRecords
    frozen: Any
    checksums: dict[str, str]
    of_data: list[str]


@dataclass(frozen=True)
class _Trained:
    """What training has left beside the weights."""

    records: tuple[PhaseRecord, ...]
    warnings: tuple[str, ...]
    skipped_steps: int | None
    data_wait: float | None
    kept: dict[str, Any] | None
    averaged: dict[str, Any] | None


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
    recalibrate: bool = False,
    resume: bool = False,
    other_data: bool = False,
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
        other_data: Whether a run that goes on may do so with data that have changed in the same place.
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
    asked = _Asked(Path(recipe), out, overrides, allow_code, overwrite, recalibrate, resume, other_data, console)
    with stoppable(), ExitStack() as held:
        log = held.enter_context(RunLog(console).attach())
        result = _run(asked, held, log)
        assert result
        return result


def train_beside_chief(
    recipe: str | Path,
    out: Path,
    *,
    overrides: Sequence[str],
    allow_code: Sequence[str],
    console: Console,
    **asked: Any,
) -> None:
    """Does what a worker that is not the chief does in a run: all of it up to the end of training.

    Args:
        recipe: As for `run`.
        out: A folder of this worker alone.
        overrides: As for `run`, and so on.
        allow_code: The same.
        console: The same.
        asked: The other options of `run`.
    """
    options = {"overrides": overrides, "allow_code": allow_code, "console": console, "is_chief": False, **asked}
    with stoppable(), ExitStack() as held:
        log = held.enter_context(RunLog(console).attach())
        _run(_Asked(Path(recipe), out, **options), held, log)


def _run(asked: _Asked, held: ExitStack, log: RunLog) -> RunResult | None:
    """Does what `run` says; the lock of the run folder is `held` until the caller lets it go."""
    clock = StageClock()
    begun = _load(asked, clock)
    with clock("prepare"):
        recipe, chosen = with_measured_precision(begun.recipe)
    begun = replace(begun, recipe=recipe)
    with precision(recipe) as native:
        layout, range_test = _lay_out(asked, begun, clock, chosen)
        on_groups = [*advice_on_rates(layout, range_test, asked.recipe.parent), *_without_slots(begun)]
        for sentence in on_groups:
            asked.say(f"warning: {sentence}")
        check_same_layout(layout, described(layout))
        before = _evaluate_before(asked, begun, layout, clock)
        # Nothing has been written so far: a run that fails above leaves no folder.
        folder, weights = _open_folder(asked, begun, layout, before.of_data, held, log)
        if range_test:
            write_range_test(range_test, folder / "plots")
        checkpoint = _checkpoint(begun, layout, folder, before, clock)
        weights.writes = checkpoint.writes = asked.is_chief
        trackers = _trackers(asked, layout, folder, held) if asked.is_chief else None
        trained = _train(asked, layout, folder, before, weights, checkpoint, trackers, on_groups, clock)
        if not asked.is_chief:
            return None
        if begun.recalibrate:  # statistics of trained groups alone, so the proof still holds
            with clock("recalibrate"):
                count = recalibrate_statistics(layout.model, layout.groups, build_rows(layout.recipe, layout.examples))
            asked.say(f"recalibrated: the statistics of {count} BatchNormalization layers")
        result = _finish(asked, layout, folder, before, weights, trained, native, clock)
        result = replace(result, mixed_precision=" ".join(chosen))
    forget_traces(layout.model)  # the caller's own block decides from here on
    ending = folder / ENDING_FILE
    with suppress(OSError):  # of a full disk, which the next file tells
        ending.touch()
    write_result(result)
    write_page(folder, layout, asked.console)
    if layout.recipe.train.keep_checkpoints is False:  # nothing would be left to go on from
        ending.unlink(missing_ok=True)
    keep_checkpoints(checkpoint, layout.recipe.train, layout.model, weights, asked.console)
    # Last, so that the folder shows what has happened even where the proof fails.
    changed = before.proof.failure()
    if trackers:
        trackers.end("failed" if changed else "finished", result.metrics, folder / "report.html")
    log.close(changed)  # before its hash is taken
    write_run_hashes(folder, layout, asked.console, recalibrate=begun.recalibrate)
    ending.unlink(missing_ok=True)
    if changed:
        raise changed
    return result


def _load(asked: _Asked, clock: StageClock) -> _Begun:
    """Loads the recipe, and finds the run that goes on."""
    with clock("load"):
        loaded = load_recipe(asked.recipe, overrides=asked.overrides, allow_code=asked.allow_code)
        # Here, so that a run that goes on elsewhere has batches of as many rows, whatever the number of replicas.
        loaded, on_batch = with_global_batch(loaded, build_distribution(loaded))
        for sentence in on_batch:
            asked.say(sentence)
        check_run_folder(asked.out, overwrite=asked.overwrite, resume=asked.resume)
        out = asked.out
        of_run = out is not None and asked.recipe.resolve() == (out / "recipe.yaml").resolve()
        former = None
        if asked.resume and out:
            former = find_former_run(out, loaded, of_run=of_run, other_data=asked.other_data)
    if not former:
        return _Begun(loaded, dump_recipe(loaded, absolute_paths=True), asked.recalibrate, None)
    clock.seconds = dict(former.document["seconds"])
    place = former.checkpoint.position
    for path, why in former.checkpoint.damaged.items():
        asked.say(f"warning: `{path}` is damaged ({why}), so the checkpoint before it is taken")
    plan = former.document.get("plan_of_phases") or []
    steps = next((total // epochs for _, epochs, _, total in plan if epochs), 0)
    within = f", step {place.step + 1}" if place.step else ""
    where = f"epoch {place.epoch + 1}" + (", after its last step" if steps and place.step >= steps else within)
    asked.say(f"going on at {where} from `{former.checkpoint.path}`")
    if former.goes_back:
        asked.say(
            f"the rates fall from step {former.document['cooldown_at'] + 1:,} on: the run goes on from before that, as "
            "a longer run would. `train.extend: cooldown`, or `append`, goes on from its end"
        )
    return _Begun(former.recipe, former.written, former.document["recalibrate"], former)


def _without_slots(begun: _Begun) -> list[str]:
    """Returns a sentence where a run goes on without the slots of its optimizers."""
    if begun.former is None or begun.former.checkpoint.holds_slots:
        return []
    return [
        f"the run went on from step {begun.former.checkpoint.steps:,} with fresh slots in all optimizers, since its "
        "checkpoints hold none (`train.checkpoint_optimizer: false`): the end is not that of a run which was left alone"
    ]


def _lay_out(asked: _Asked, begun: _Begun, clock: StageClock, chosen: Sequence[str]) -> tuple[Layout, Any]:
    """Builds the layout, with measured rates where the recipe asks for them, and prints its plan."""
    with clock("prepare"):
        layout = build_layout(begun.recipe, chosen)
    range_test = None
    if layout.rates_to_measure:
        with clock("lr_range"):
            layout, range_test = with_measured_rates(layout, asked.console)
    print_plan(layout, asked.console, out=asked.out)
    return layout, range_test


def _evaluate_before(asked: _Asked, begun: _Begun, layout: Layout, clock: StageClock) -> _Before:
    """Evaluates before training, and notes the checksums of what is frozen throughout."""
    settings, former = layout.recipe.train, begun.former
    # Before training, and before anything is written: test examples that do not fit cost no training time.
    with (
        clock("evaluate"),
        located(layout.recipe, "data"),
        unreadable_rows_named(layout.examples),
        explained(DataError, "The model must be able to evaluate the test examples.", SEE_WHERE),
    ):
        trained, every_row = layout.length.steps * batch_rows(layout.recipe), len(layout.examples.test)
        rows = rows_before(layout.examples.test, settings.evaluate_before, trained=trained, batch_size=EVALUATED_ROWS)
        is_known = former is not None and not has_other_targets(former.changes)
        metrics = former.document["metrics_before"] if former and is_known else _evaluate(layout, rows)
        if settings.evaluate_before is False:  # evaluated only to show that the rows fit
            metrics = {}
        elif len(rows) < every_row:
            asked.say(
                f"before training: {len(rows):,} of {every_row:,} test rows are evaluated, evenly spaced "
                "(`train.evaluate_before: true` takes all)"
            )
        metrics_of_mean = score_of_constant(layout.model, layout.examples)
    check_room(asked.out or Path("runs"), *disk_need_of(layout), overwrite=asked.overwrite)
    # Checksums of all that no phase trains; each phase adds those of what it freezes.
    proof, frozen = FrozenRecords(), frozen_in_all(layout.model, layout.groups, layout.phases)
    checksums, of_data = proof.begin(frozen), list[str]()
    if former and asked.out:
        checksums, of_data = _go_on(asked.out, former, layout, proof, frozen, checksums)
    part = len(rows) if metrics and len(rows) < every_row else None
    return _Before(metrics, part, metrics_of_mean, proof, frozen, checksums, of_data)


def _go_on(
    out: Path, former: FormerRun, layout: Layout, proof: FrozenRecords, frozen: Any, checksums: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Checks that a run can go on with this layout.

    Returns:
        The checksums that hold from its beginning, and sentences on data that have changed.
    """
    before = former.document["checksums_before"]
    same = [*before] if not former.changes else [name for name in before if name in checksums]
    check_same_start(out, {name: before[name] for name in same}, checksums)
    data = described(layout)
    if not has_other_targets(former.changes):
        check_same_data(out, former.document["data"], data)
    if not former.changes:
        return checksums, []
    plan = plan_of_phases(layout.phases, layout.groups, layout.length.steps_per_epoch)
    of_data = fit_in(former.checkpoint, plan, former.changes, data)
    layout.model.optimizer.build(layout.model.trainable_variables)
    former.checkpoint.restore(layout.model)
    check_network(out, former.checkpoint.carried or (), former.changes)
    of_data += advice_on_split(layout.recipe, former.changes)
    return proof.begin(frozen) | {name: before[name] for name in same}, of_data


def _open_folder(
    asked: _Asked, begun: _Begun, layout: Layout, of_data: Sequence[str], held: ExitStack, log: RunLog
) -> tuple[Path, LastWeights]:
    """Creates and locks the run folder, and writes what is known before training."""
    former = begun.former
    opened = open_run_folder(
        asked.out,
        name=asked.recipe.stem,
        overwrite=asked.overwrite or asked.resume,
        removes=former is None,
    )
    folder = held.enter_context(opened)
    log.open(folder / "run.log", append=former is not None)
    weights = LastWeights(last_weights(folder))
    weights.optimizer = layout.recipe.train.checkpoint_optimizer
    held.enter_context(_kept_at_a_signal(weights))
    if former and former.changes:
        kept = keep_former(folder) if former.is_finished else ""
        carried = former.checkpoint.carried or ()
        report_carried(folder, carried, former.changes, kept, asked.console, data=of_data)
    if not former or former.changes:
        write_plan(folder, layout, asked.console)
        (folder / "result.json").unlink(missing_ok=True)  # last: until here the run is as it was
    return folder, weights


@contextmanager
def _kept_at_a_signal(weights: LastWeights) -> Iterator[None]:
    """Lets a signal before or after training say which weights are saved."""
    try:
        yield
    except Stopped as stop:
        stop.kept = stop.kept or weights.keep()
        raise


def _checkpoint(begun: _Begun, layout: Layout, folder: Path, before: _Before, clock: StageClock) -> Checkpoint:
    """Returns what writes checkpoints, with all that a run notes in them beside the state of the training."""
    settings = layout.recipe.train
    checkpoint = begun.former.checkpoint if begun.former else Checkpoint(folder / "checkpoints")
    checkpoint.every_seconds, checkpoint.every_steps = settings.checkpoint_seconds, settings.checkpoint_steps
    checkpoint.slots = settings.checkpoint_optimizer
    checkpoint.cooldown_at = layout.cooldown_at
    noted = {
        "recipe": begun.written,
        "resolved": dump_recipe(layout.recipe, absolute_paths=True),
        "epochs": layout.length.epochs,
        "cooldown_at": checkpoint.cooldown_at,
        "plan_of_phases": plan_of_phases(layout.phases, layout.groups, layout.length.steps_per_epoch),
        "extensions": [extension.model_dump() for extension in settings.extensions],
        "recalibrate": begun.recalibrate,
        "data": described(layout),
        "metrics_before": before.metrics,
        "checksums_before": before.checksums,
    }
    checkpoint.more = lambda: noted | {"seconds": clock.so_far()}
    return checkpoint


def _trackers(asked: _Asked, layout: Layout, folder: Path, held: ExitStack) -> Trackers | None:
    """Begins or goes on with the run at the services that the recipe names; they are told how it ends."""
    named = layout.recipe.train.trackers
    if not named:
        return None
    config = yaml.safe_load(dump_recipe(layout.recipe, absolute_paths=True))
    projects, with_report = {each.name: each.project for each in named}, [each.name for each in named if each.report]
    return held.enter_context(Trackers(projects, folder, config, with_report=with_report, report=asked.say))


def _train(
    asked: _Asked,
    layout: Layout,
    folder: Path,
    before: _Before,
    weights: LastWeights,
    checkpoint: Checkpoint,
    trackers: Trackers | None,
    on_groups: list[str],
    clock: StageClock,
) -> _Trained:
    """Trains, and leaves the model with the weights that the recipe asks for: the last, the best, or a mean."""
    settings, wait = layout.recipe.train, DataWait()
    non_finite = NonFiniteGradients(settings.non_finite, layout.groups) if settings.non_finite else None
    keep_best, collect = best_keeper(settings), collector(settings)
    seconds = settings.time_limit_seconds
    time_limit = TimeLimit(seconds, layout.length.steps, clock=common_clock()) if seconds else None
    with clock("train"), located(layout.recipe, "data"), unreadable_rows_named(layout.examples):
        records = train(
            layout.model,
            layout.groups,
            layout.phases,
            layout.examples,
            fit_options(layout),
            folder=folder,
            console=asked.console,
            proof=before.proof,
            wait=wait,
            weights=weights,
            checkpoint=checkpoint,
            non_finite=non_finite,
            advice=on_groups,
            keepers=[keeper for keeper in (keep_best, collect) if keeper],
            time_limit=time_limit,
            trackers=trackers,
        )
    averaged = None
    if keep_best and (kept_best := keep_best.restore(layout.model)):
        asked.say(kept_best)
    if collect and collect.kept:
        with clock("average"):
            averaged = average(layout, collect)
        asked.say(said_of(averaged))
    if advice := advice_on_wait(wait.share, layout.examples, keeps=layout.recipe.data.keep != "off"):
        asked.say(advice)
    warnings = (non_finite.summary() if non_finite else "", time_limit.summary() if time_limit else "", *on_groups)
    return _Trained(
        records=records,
        warnings=warnings,
        skipped_steps=non_finite.skipped if non_finite else None,
        data_wait=None if wait.share is None else round(wait.share, 4),
        kept=keep_best.to_json() if keep_best else None,
        averaged=averaged,
    )


def fit_options(layout: Layout) -> FitOptions:
    """Takes from `train` whatever `FitOptions` has a field for, so that no key is forgotten."""
    names = {option.name for option in fields(FitOptions)}
    options: dict[str, Any] = {name: value for name, value in layout.recipe.train if name in names}
    options |= {"epochs": layout.length.epochs, "steps_per_epoch": layout.length.steps_per_epoch}
    return FitOptions(**options, seed=layout.recipe.seed, announce_phases=layout.recipe.phases is not None)


def _finish(
    asked: _Asked,
    layout: Layout,
    folder: Path,
    before: _Before,
    weights: LastWeights,
    trained: _Trained,
    native: NativeLayers,
    clock: StageClock,
) -> RunResult:
    """Evaluates, saves, draws and proves; prints the warnings."""
    model, records = layout.model, trained.records
    check_weights(layout.tree.leaves, layout.groups, "at the end of training")
    with clock("evaluate"):
        metrics = _evaluate(layout)
        predictions = predicted(layout, asked.console)
        classes = results_of_classes(model, layout.examples, predictions) if predictions else {}
        thresholds = label_thresholds(model, layout.examples, EVALUATED_ROWS)
        # The loss of a training step is that before its update, so the last update shows only here.
        check_finite(metrics["loss"], "on the test examples after training", folder)
    with clock("save"):
        left_out = write_model(model, folder, weights)
        opened = open_again(folder / "model.keras")
    with clock("plot"):
        draw_curves(folder, records)
    whole_run = before.proof.end("the run", before.frozen, before.checksums)
    with clock("save"):
        not_opened = opened()
    with clock("report"):
        write_facts(folder, layout, predictions, asked.console)
    diverged = divergence(before.metrics.get("loss", nan), metrics["loss"], _loss_of_guess(layout))
    warnings = tuple(filter(None, (not_opened, diverged, *trained.warnings)))
    for warning in warnings:
        asked.console.print(f"warning: {warning}", markup=False)
    for sentence in left_out:
        asked.say(f"model.keras: {sentence}")
    return RunResult(
        folder=folder,
        batch_size=batch_rows(layout.recipe),
        metrics=metrics,
        metrics_before=before.metrics,
        rows_before=before.rows,
        metrics_of_mean=before.metrics_of_mean,
        classes=classes,
        frozen_unchanged=before.proof.holds,
        frozen_tensors=whole_run.tensors,
        not_opened=not_opened,
        left_out=left_out,
        native=native.to_json(model) if layout.recipe.train.kernels == "native" else None,
        keras_loop="; ".join(dict.fromkeys(record.keras_loop for record in records if record.keras_loop)),
        warnings=warnings,
        skipped_steps=trained.skipped_steps,
        seconds=clock.seconds,
        data_wait=trained.data_wait,
        phases=records if layout.shows_phases else (),
        extended_from=former_ends(folder),
        kept=trained.kept,
        averaged=trained.averaged,
        thresholds=thresholds,
        model=model,
    )


def _evaluate(layout: Layout, rows: Split | None = None) -> dict[str, float]:
    batches = (rows or layout.examples.test).batches(EVALUATED_ROWS)
    metrics = layout.model.evaluate(batches, verbose=0, return_dict=True)
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda name: name != "loss")}  # loss first


def _loss_of_guess(layout: Layout) -> float | None:
    losses, shape = by_output(layout.recipe.train.loss), getattr(layout.model, "output_shape", ())
    is_single = list(losses) == [""] and isinstance(shape, tuple)  # a class of the user's own may not say its shape
    return loss_of_guess(losses[""].name, next(iter(shape[::-1]), None)) if is_single else None
