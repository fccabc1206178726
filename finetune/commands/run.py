"""`finetune run`: load, build, restore, plan, train, prove, save.

The function `_run` is the story; start there. Its steps are in `run_before`, `run_training` and `run_after`.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.build.data import build_rows, precision
from finetune.build.mixed_precision import with_measured_precision
from finetune.commands.kept_weights import keep_checkpoints
from finetune.commands.lr_range import advice_on_rates, write_range_test
from finetune.commands.run_after import finish
from finetune.commands.run_before import (
    Asked,
    checkpoint_of,
    evaluate_before,
    lay_out,
    load,
    open_folder,
    without_slots,
)
from finetune.commands.run_report import write_page, write_run_hashes
from finetune.commands.run_result import RunResult, print_result, write_result
from finetune.commands.run_training import trackers_of, train_as_planned
from finetune.commands.several_workers import check_same_layout
from finetune.commands.stage_clock import StageClock
from finetune.commands.written_files import described
from finetune.interruption import stoppable
from finetune.kernels.native_kernels import forget_traces
from finetune.results.run_folder import ENDING_FILE, check_can_resume
from finetune.results.run_log import RunLog
from finetune.training.recalibrate import recalibrate as recalibrate_statistics


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
    asked = Asked(Path(recipe), out, overrides, allow_code, overwrite, recalibrate, resume, other_data, console)
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
        _run(Asked(Path(recipe), out, **options), held, log)


def _run(asked: Asked, held: ExitStack, log: RunLog) -> RunResult | None:
    """Does what `run` says; the lock of the run folder is `held` until the caller lets it go."""
    clock = StageClock()
    begun = load(asked, clock)
    with clock("prepare"):
        recipe, chosen = with_measured_precision(begun.recipe)
    begun = replace(begun, recipe=recipe)
    with precision(recipe) as native:
        layout, range_test = lay_out(asked, begun, clock, chosen)
        on_groups = [*advice_on_rates(layout, range_test, asked.recipe.parent), *without_slots(begun)]
        for sentence in on_groups:
            asked.say(f"warning: {sentence}")
        check_same_layout(layout, described(layout))
        before = evaluate_before(asked, begun, layout, clock)
        # Nothing has been written so far: a run that fails above leaves no folder.
        folder, weights = open_folder(asked, begun, layout, before.of_data, held, log)
        if range_test:
            write_range_test(range_test, folder / "plots")
        checkpoint = checkpoint_of(begun, layout, folder, before, clock)
        weights.writes = checkpoint.writes = asked.is_chief
        trackers = trackers_of(asked, layout, folder, held) if asked.is_chief else None
        trained = train_as_planned(asked, layout, folder, before, weights, checkpoint, trackers, on_groups, clock)
        if not asked.is_chief:
            return None
        if begun.recalibrate:  # statistics of trained groups alone, so the proof still holds
            with clock("recalibrate"):
                count = recalibrate_statistics(layout.model, layout.groups, build_rows(layout.recipe, layout.examples))
            asked.say(f"recalibrated: the statistics of {count} BatchNormalization layers")
        result = finish(asked, layout, folder, before, weights, trained, native, clock)
        result = replace(result, mixed_precision=" ".join(chosen))
    forget_traces(layout.model)  # the caller's own block decides from here on
    ending = folder / ENDING_FILE
    with suppress(OSError):  # of a full disk, which the next file tells
        ending.touch()
    write_result(result)
    write_page(folder, layout, asked.console)
    changed, keeps = before.proof.failure(), layout.recipe.train.keep_checkpoints is not False
    remove = lambda: keep_checkpoints(checkpoint, layout.recipe.train, layout.model, weights, asked.console)  # noqa: E731
    if keeps:
        remove()
    # Last, so that the folder shows what has happened even where the proof fails.
    if trackers:
        trackers.end("failed" if changed else "finished", result.metrics, folder / "report.html")
    if not changed:
        print_result(result, asked.console)
    log.close(changed)  # before its hash is taken
    write_run_hashes(folder, layout, asked.console, recalibrate=begun.recalibrate)
    ending.unlink(missing_ok=True)
    if not keeps:  # last: until the run has ended there is a checkpoint to go on from
        remove()
    if changed:
        raise changed
    return result
