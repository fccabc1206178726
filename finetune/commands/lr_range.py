"""`finetune lr-range`: which learning rates suit a recipe? Sweeps them on its model, and leaves no trace in it."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from finetune.build.data import build_batches, precision
from finetune.build.layout import Layout, build_layout, with_peaks
from finetune.build.mixed_precision import with_measured_precision
from finetune.commands.plan import print_model
from finetune.errors import RecipeError, TrainingError, quote
from finetune.groups.layer_tree import layers_in_order
from finetune.recipe.groups import Strategy
from finetune.recipe.loader import load_recipe, place_of
from finetune.recipe.rate_edits import check_text, scaled, scaled_text, tidy
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import check_run_folder, open_run_folder, replacing, write_json
from finetune.results.tables import rules_table
from finetune.results.terminal_plots import terminal_plot
from finetune.training.callbacks import progress_bar
from finetune.training.freezing import apply_state, freeze
from finetune.training.group_advice import advice_on_divergence
from finetune.training.inference import undo_inference_mode
from finetune.training.lr_range.api import ALL, RangeTest, lr_range_test
from finetune.training.lr_range.consensus import check_steps
from finetune.training.lr_range.limits import check_others, check_range
from finetune.training.phases.phase import state_of

_AUTO_REPEATS = 5  # sweeps that `train.learning_rate: auto` makes where a single sweep is too noisy


@dataclass(frozen=True)
class Range:
    """How an LR range test is made; each field is the argument of `finetune.lr_range_test` of that name."""

    group: str | None = None
    each: bool = False
    start: float = 1e-7
    end: float = 10.0
    steps: int = 100
    repeats: int = 1
    others: str = "frozen"


def lr_range(
    recipe: str | Path,
    settings: Range = Range(),
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    write: bool = False,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: Console | None = None,
) -> RangeTest:
    """Makes an LR range test on the model, data, groups and optimizers of a recipe.

    Args:
        recipe: Path of the recipe.
        settings: What is swept, and how.
        out: A folder for `lr_range.json`, `lr_range.png` and `lr_range.svg`.
        overwrite: Whether `out` may hold files; only those three are replaced.
        write: Whether the suggested rates are written into the text of the recipe; its comments stay.
        overrides: Changes to the recipe such as `"train.batch_size=64"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to print the result; `None` prints nothing.

    Raises:
        FinetuneError: The input is wrong, or the rates cannot be written into the recipe.
        TrainingError: There is nothing to write, because the test suggests no rate.
    """
    console = console or Console(quiet=True)
    check_steps(settings.steps)
    check_range(settings.start, settings.end, settings.steps, settings.repeats)
    check_others(settings.others)
    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    folder = None if out is None else Path(out)
    check_run_folder(folder, overwrite=overwrite)
    if write:  # before the measurement, which may take minutes
        _check_writable(loaded, Path(recipe), settings)
    loaded, chosen = with_measured_precision(loaded)
    with precision(loaded):
        layout = build_layout(loaded, chosen)
        print_model(layout, console)
        with _taken(folder, overwrite=overwrite):
            with _as_in_first_phase(layout, settings, console):
                result = _measure(layout, settings, console)
            print_range_test(result, console, trained=layout.phases[0].names(layout.groups))
            if folder:
                write_range_test(result, folder)
                console.print(f"written: {folder / 'lr_range.json'}, .png and .svg", markup=False)
    if write:
        _write_rates(layout, Path(recipe), result, console)
    return result


@contextmanager
def _taken(folder: Path | None, *, overwrite: bool) -> Iterator[None]:
    """Holds the lock of the folder for the results, before the measurement: nobody else may take it meanwhile."""
    if folder is None:
        yield
        return
    try:
        with open_run_folder(folder, name="", overwrite=overwrite, removes=False):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # empty, where nothing was measured


@contextmanager
def _as_in_first_phase(layout: Layout, settings: Range, console: Console) -> Iterator[None]:
    """Freezes, in the block, what the first phase freezes, and says what is swept and what that costs."""
    each = list(layout.settings) if settings.each else [settings.group]
    steps, per_epoch = settings.steps * settings.repeats * len(each), layout.length.steps_per_epoch
    cost = f"{steps:,} steps, as many as {steps / per_epoch:.2g} epochs have; the model is not changed"
    first = layout.phases[0]
    trained = first.names(layout.groups)
    if len(trained) == len(layout.settings) or settings.group or settings.each:
        console.print(f"LR range test: {cost}", highlight=False, markup=False)
        yield
        return
    console.print(
        f"LR range test of phase 1, which trains {quote(trained, limit=3)} alone: {cost}. The rates of the other "
        "groups keep their ratio to it; `--each` sweeps every group",
        highlight=False,
        markup=False,
    )
    apply_state(layout.model, state_of(layout.model, layout.groups, first))
    try:
        yield
    finally:
        undo_inference_mode(layers_in_order(layout.model))
        freeze(layout.model, layout.groups)


def with_measured_rates(layout: Layout, console: Console) -> tuple[Layout, RangeTest]:
    """Does what `train.learning_rate: auto` asks for: measures the rates, and derives the layout that has them.

    Args:
        layout: The layout of the run; its rates only give the ratios between the groups.
        console: Where to print the result.

    Raises:
        TrainingError: The test suggests no rate.
    """
    result = _measure(layout, Range(), console)
    if not result.learning_rates:  # the rules disagree on a noisy curve; a mean of several is less noisy
        console.print(f"a single LR range test gives no suggestion, so the mean of {_AUTO_REPEATS} sweeps is used")
        result = _measure(layout, Range(repeats=_AUTO_REPEATS), console)
    print_range_test(result, console)
    _check_suggested(result, "`train.learning_rate: auto` takes", "Write the rates by hand and remove `auto`.")
    return with_peaks(layout, result.learning_rates), result


def write_range_test(result: RangeTest, folder: Path) -> None:
    """Writes the result and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lr_range.json", result.to_json())
    result.plot(folder / "lr_range")


def advice_on_rates(layout: Layout, measured: RangeTest | None, folder: Path) -> list[str]:
    """Returns a sentence for each group with a peak rate at which a range test has diverged.

    Args:
        layout: The layout of the run.
        measured: The range test that has set its rates; otherwise that of `lr_range.json` is taken, if there is one.
        folder: Where that file may be: the folder of the recipe.
    """
    divergences: dict[str, float | None] = {}
    if measured:
        divergences = {name: verdict.divergence for name, verdict in measured.verdicts.items()}
    else:
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):  # none, or of another program
            verdicts = json.loads((folder / "lr_range.json").read_text(encoding="utf-8"))["verdicts"]
            rates = {name: verdict["divergence"] for name, verdict in verdicts.items()}
            divergences = {name: None if rate is None else float(rate) for name, rate in rates.items()}
    return advice_on_divergence(divergences, layout.peaks, ALL)


def print_range_test(result: RangeTest, console: Console, *, trained: Sequence[str] | None = None) -> None:
    """Prints the curve, what each rule suggests, and the rate suggested for every group.

    Args:
        result: The result.
        console: Where to print.
        trained: Names of the groups that were trained together; by default all.
    """
    for note in result.notes:
        console.print(f"note: {note}")
    for name, verdict in result.verdicts.items():
        curve = result.curves[name]
        encoding = (console.encoding or "").lower()  # the curve is drawn with Braille dots where the terminal has them
        plot = terminal_plot(
            curve["rates"], curve["smoothed"], mark=verdict.learning_rate, ascii_only="utf" not in encoding
        )
        console.print(f"\n{_title(name, result, trained or list(result.base_rates))}\n{plot}")
        console.print(rules_table(verdict.to_json()))
        if verdict.refused:
            console.print(f"no suggestion: {verdict.refused}")
        for note in verdict.notes:
            console.print(f"note: {note}")
    if len(result.verdicts) > 1:
        # A rate that suits a group alone is often too high when all groups move at once.
        console.print(
            "note: groups trained together need smaller rates than each group alone; also sweep all groups together"
        )
    for sentence in result.suggestions(lambda rate: f"{tidy(rate):g}"):
        console.print(sentence)


def _title(name: str, result: RangeTest, trained: Sequence[str]) -> str:
    if name != ALL:
        return f"smoothed loss against the learning rate of `{name}` alone"
    names = list(result.base_rates)
    rising = "; all groups rise" if len(names) > 1 else ""
    rising = f"; {quote(trained, limit=3)} trained" if len(trained) < len(names) else rising
    return f"smoothed loss against the learning rate of `{names[-1]}`{rising}"


def _measure(layout: Layout, settings: Range, console: Console) -> RangeTest:
    with progress_bar(console, "LR range test") as on_step:
        return lr_range_test(
            layout.model,
            build_batches(layout.recipe, layout.examples),
            # Peaks, not present rates: at the first step of a warm-up every rate is 0, and ratios are lost.
            base_rates=layout.peaks,
            on_step=on_step,
            **vars(settings),
        )


# -- Into the recipe --------------------------------------------------------------------------------------------------


def _check_writable(recipe: Recipe, path: Path, settings: Range) -> None:
    """Raises a RecipeError for what cannot be written, before the measurement instead of after it."""
    if isinstance(recipe.groups, Strategy) and (settings.group or settings.each):
        raise RecipeError(
            f"{place_of(recipe, 'groups')}: a strategy fixes the ratios between the rates of its groups, so the "
            "rate of a single group cannot be written. Sweep all groups together, or list the groups: `finetune "
            "suggest` writes such a list."
        )
    groups = [group.name for group in recipe.groups if not group.frozen] if isinstance(recipe.groups, tuple) else [""]
    scaled_text(recipe, path, dict.fromkeys(groups, 1.0))  # raises where a rate is not a plain number in this file
    if not (os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)):
        raise RecipeError(f"`--write` changes the recipe. `{path}` or its folder is write-protected. Use a copy.")


def _check_suggested(result: RangeTest, taker: str, advice: str) -> None:
    if not result.learning_rates:
        reason = next(verdict.refused for verdict in result.verdicts.values())
        raise TrainingError(
            f"{taker} the rate that an LR range test suggests. The test gave no suggestion. {reason} {advice}"
        )


def _write_rates(layout: Layout, path: Path, result: RangeTest, console: Console) -> None:
    _check_suggested(result, "`--write` writes", "The recipe is unchanged.")
    factors = layout.factors(result.learning_rates)
    text, changed = scaled_text(layout.recipe, path, factors)
    check_text(text, path, scaled(load_recipe(path), factors))  # without overrides, which are not written
    with replacing(path.resolve()) as temporary:  # behind a link, the file itself
        temporary.write_text(text, encoding="utf-8", newline="")
        shutil.copymode(path, temporary)
    for place, (old, new) in changed.items():
        console.print(f"{place}: {old:g} -> {new:g}")
    if layout.rates_to_measure:
        console.print(
            "note: `train.learning_rate: auto` is still in the recipe and will measure again. Remove it to train with "
            "these rates"
        )
