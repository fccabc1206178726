"""What `finetune run` does before the first step: load, lay out, evaluate, open the run folder."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.build.data import batch_rows
from finetune.build.distribute import build_distribution, with_global_batch
from finetune.build.layout import Layout, build_layout
from finetune.commands.changed_run import (
    advice_on_split,
    check_network,
    fit_in,
    has_other_targets,
    keep_former,
    plan_of_phases,
    report_carried,
)
from finetune.commands.lr_range import with_measured_rates
from finetune.commands.plan import disk_need_of, print_plan
from finetune.commands.rate_search import with_searched_rates
from finetune.commands.resume import FormerRun, check_same_data, check_same_start, find_former_run
from finetune.commands.stage_clock import StageClock
from finetune.commands.written_files import described, write_plan
from finetune.data.examples import Split
from finetune.data.row_checks import unreadable_rows_named
from finetune.errors import DataError, quote
from finetune.interruption import Stopped
from finetune.recipe.error_places import located
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.moved_files import contents
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import check_room, check_run_folder, open_run_folder
from finetune.results.run_log import RunLog
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.constant_answer import score_of_constant
from finetune.training.evaluation_before import rows_before
from finetune.training.finished_steps import SEE_WHERE
from finetune.training.fit import last_weights
from finetune.training.frozen_proof import FrozenRecords
from finetune.training.phases.phase import frozen_in_all
from finetune.training.rehearsal import EVALUATED_ROWS
from finetune.training.try_examples import explained


@dataclass(frozen=True)
class Asked:
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
class Begun:
    """What is known before the network is built: the recipe, its text, and the run that goes on, if one does."""

    recipe: Recipe
    written: str
    recalibrate: bool
    former: FormerRun | None


@dataclass(frozen=True)
class Before:
    """The figures before training, and the checksums of what no phase trains."""

    metrics: dict[str, float]
    rows: int | None
    metrics_of_mean: dict[str, float]
    proof: FrozenRecords
    frozen: Any
    checksums: dict[str, str]
    of_data: list[str]


def load(asked: Asked, clock: StageClock) -> Begun:
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
        return Begun(loaded, dump_recipe(loaded, absolute_paths=True), asked.recalibrate, None)
    clock.seconds = dict(former.document["seconds"])
    place = former.checkpoint.position
    for path, why in former.checkpoint.damaged.items():
        asked.say(f"warning: `{path}` is damaged ({why}), so the checkpoint before it is taken")
    plan = former.document.get("plan_of_phases") or []
    steps = next((total // epochs for _, epochs, _, total in plan if epochs), 0)
    within = f", step {place.step + 1}" if place.step else ""
    where = f"epoch {place.epoch + 1}" + (", after its last step" if steps and place.step >= steps else within)
    asked.say(f"going on at {where} from `{former.checkpoint.path}`")
    if former.moved:
        asked.say(f"files lie elsewhere, with the content that they had: {quote(former.moved)}")
    if former.goes_back:
        asked.say(
            f"the rates fall from step {former.document['cooldown_at'] + 1:,} on: the run goes on from before that, as "
            "a longer run would. `train.extend: cooldown`, or `append`, goes on from its end"
        )
    return Begun(former.recipe, former.written, former.document["recalibrate"], former)


def without_slots(begun: Begun) -> list[str]:
    """Returns a sentence where a run goes on without the slots of its optimizers."""
    resumed = begun.former and begun.former.checkpoint.resumed
    if resumed is None or resumed.holds_slots:
        return []
    return [
        f"the run went on from step {resumed.steps:,} with fresh slots in all optimizers, since its checkpoints "
        "hold none (`train.checkpoint_optimizer: false`): the end is not that of a run which was left alone"
    ]


def lay_out(asked: Asked, begun: Begun, clock: StageClock, chosen: Sequence[str]) -> tuple[Layout, Any]:
    """Builds the layout, with measured rates where the recipe asks for them, and prints its plan.

    Args:
        asked: What the caller of `run` asks for.
        begun: What `load` has returned.
        clock: Takes the seconds of each stage.
        chosen: Sentences of the plan on a measured precision.
    """
    with clock("prepare"):
        layout = build_layout(begun.recipe, chosen)
    range_test = None
    if layout.rates_to_measure:
        with clock("lr_range"):
            layout, range_test = with_measured_rates(layout, asked.console)
    if layout.rates_to_search:
        with clock("rate_search"):
            layout = with_searched_rates(layout, asked.console)
    print_plan(layout, asked.console, out=asked.out)
    return layout, range_test


def evaluate_before(asked: Asked, begun: Begun, layout: Layout, clock: StageClock) -> Before:
    """Evaluates before training, and notes the checksums of what is frozen throughout.

    Args:
        asked: What the caller of `run` asks for.
        begun: What `load` has returned.
        layout: The layout of the recipe.
        clock: Takes the seconds of each stage.
    """
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
        metrics = former.document["metrics_before"] if former and is_known else evaluated(layout, rows)
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
    return Before(metrics, part, metrics_of_mean, proof, frozen, checksums, of_data)


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
        check_same_data(out, former.document["data"], data, moved=former.moved)
    if not former.changes:
        return checksums, []
    plan = plan_of_phases(layout.phases, layout.groups, layout.length.steps_per_epoch)
    of_data = fit_in(former.checkpoint, plan, former.changes, data)
    layout.model.optimizer.build(layout.model.trainable_variables)
    former.checkpoint.restore(layout.model)
    check_network(out, former.checkpoint.resumed.carried or (), former.changes)
    of_data += advice_on_split(layout.recipe, former.changes)
    return proof.begin(frozen) | {name: before[name] for name in same}, of_data


def open_folder(
    asked: Asked, begun: Begun, layout: Layout, of_data: Sequence[str], held: ExitStack, log: RunLog
) -> tuple[Path, LastWeights]:
    """Creates and locks the run folder, and writes what is known before training.

    Args:
        asked: What the caller of `run` asks for.
        begun: What `load` has returned.
        layout: The layout of the recipe.
        of_data: Sentences on data that have changed.
        held: What is ended when the run is over.
        log: The log of the console, which begins its file here.
    """
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
        carried = former.checkpoint.resumed.carried or ()
        report_carried(folder, carried, former.changes, kept, asked.console, data=of_data)
    if not former or former.changes or former.moved:
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


def checkpoint_of(begun: Begun, layout: Layout, folder: Path, before: Before, clock: StageClock) -> Checkpoint:
    """Returns what writes checkpoints, with all that a run notes in them beside the state of the training.

    Args:
        begun: What `load` has returned.
        layout: The layout of the recipe.
        folder: The run folder.
        before: What is known from before training.
        clock: Takes the seconds of each stage.
    """
    settings = layout.recipe.train
    checkpoint = begun.former.checkpoint if begun.former else Checkpoint(folder / "checkpoints")
    checkpoint.times.every_seconds, checkpoint.times.every_steps = (
        settings.checkpoint_seconds,
        settings.checkpoint_steps,
    )
    checkpoint.slots = settings.checkpoint_optimizer
    checkpoint.times.cooldown_at = layout.cooldown_at
    known = begun.former.document.get("contents") if begun.former and not begun.former.changes else None
    noted = {
        "recipe": begun.written,
        "resolved": dump_recipe(layout.recipe, absolute_paths=True),
        "epochs": layout.length.epochs,
        "cooldown_at": layout.cooldown_at,
        "plan_of_phases": plan_of_phases(layout.phases, layout.groups, layout.length.steps_per_epoch),
        "extensions": [extension.model_dump() for extension in settings.extensions],
        "contents": known or contents(layout.recipe),
        "recalibrate": begun.recalibrate,
        "data": described(layout),
        "metrics_before": before.metrics,
        "checksums_before": before.checksums,
    }
    checkpoint.more = lambda: noted | {"seconds": clock.so_far()}
    return checkpoint


def evaluated(layout: Layout, rows: Split | None = None) -> dict[str, float]:
    """Returns the metrics of some rows, by default of all test rows; the loss first."""
    batches = (rows or layout.examples.test).batches(EVALUATED_ROWS)
    metrics = layout.model.evaluate(batches, verbose=0, return_dict=True)
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda name: name != "loss")}  # loss first
