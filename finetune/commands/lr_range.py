"""Measurements on the network of a recipe before it is trained: which learning rates are right? No trace is left."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from finetune.build.data import build_batches, precision
from finetune.build.layout import Prepared, equip, load_allowed, prepare
from finetune.commands.plan import tell_network
from finetune.errors import RecipeError, TrainingError
from finetune.recipe.groups import Strategy
from finetune.recipe.loader import load_recipe, place_of, with_values
from finetune.recipe.rate_edits import check_text, scaled, scaled_text, tidy
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import check_run_folder, replacing, write_json
from finetune.results.tables import rules_table
from finetune.results.terminal_plots import terminal_plot
from finetune.training.callbacks import progress_bar
from finetune.training.lr_range.api import ALL, RangeTest, lr_range_test
from finetune.training.lr_range.verdict import check_steps

_AUTO_REPEATS = 5  # of `train.learning_rate: auto`, where one sweep is too noisy


@dataclass(frozen=True)
class Range:
    """How an LR range test is made; see `finetune.lr_range_test`."""

    group: str | None = None
    each: bool = False
    start: float = 1e-7
    end: float = 10.0
    steps: int = 100
    repeats: int = 1
    others: str = "rest"


def lr_range(
    recipe: str | Path,
    settings: Range = Range(),
    *,
    out: str | Path | None = None,
    write: bool = False,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: Console | None = None,
) -> RangeTest:
    """Makes an LR range test on the network, data, groups and optimizer of a recipe.

    Args:
        recipe: Path of the recipe.
        settings: What is swept, and how.
        out: A folder for `lr_range.json`, `lr_range.png` and `lr_range.svg`.
        write: Puts the rates that were found into the recipe's text; its comments stay.
        overrides: Changes to the recipe such as `"train.batch_size=64"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to tell what happens; `None` stays silent.

    Raises:
        FinetuneError: If the input is wrong, or the rates cannot be written into the recipe.
        TrainingError: If there is nothing to write: the test gave no rate.
    """
    console = console or Console(quiet=True)
    check_steps(settings.steps)
    wanted = load_allowed(recipe, overrides, allow_code)
    check_run_folder(None if out is None else Path(out), overwrite=True)
    if write:
        _check_writable(wanted, Path(recipe), settings)
    with precision(wanted):
        ready = prepare(wanted)
        tell_network(ready, console)
        found = _measure(wanted, ready, settings, console)
    tell_range_test(found, console)
    if out is not None:
        write_range_test(found, Path(out))
        console.print(f"written: {Path(out) / 'lr_range.json'}, .png and .svg")
    if write:
        _write_rates(wanted, Path(recipe), ready, found, console)
    return found


def with_measured_rates(wanted: Recipe, ready: Prepared, console: Console) -> tuple[Recipe, Prepared, RangeTest]:
    """Does what `train.learning_rate: auto` asks for: measures, and equips the network with the rates found.

    Raises:
        TrainingError: If the test gives no rate.
    """
    found = _measure(wanted, ready, Range(), console)
    if not found.learning_rates:
        console.print(f"one LR range test gives no rate, so the mean of {_AUTO_REPEATS} is judged")
        found = _measure(wanted, ready, Range(repeats=_AUTO_REPEATS), console)
    tell_range_test(found, console)
    _check_found(found, "`train.learning_rate: auto` takes", "Write the rates by hand and leave `auto` away.")
    measured = with_values(scaled(wanted, _factors(ready, found)), {("train", "learning_rate"): None})
    return measured, equip(measured, ready.model, ready.examples, ready.groups, ready.restored), found


def write_range_test(found: RangeTest, folder: Path) -> None:
    """Writes the result and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lr_range.json", found.to_json())
    found.plot(folder / "lr_range")


def tell_range_test(found: RangeTest, console: Console) -> None:
    """Prints the curve, what the rules say, and the rate of every group."""
    for note in found.notes:
        console.print(f"note: {note}")
    for name, verdict in found.verdicts.items():
        curve = found.curves[name]
        encoding = (console.encoding or "").lower()
        plot = terminal_plot(
            curve["rates"], curve["smoothed"], mark=verdict.learning_rate, ascii_only="utf" not in encoding
        )
        console.print(f"\n{_title(name, found)}\n{plot}")
        console.print(rules_table(verdict.to_json()))
        if verdict.refused:
            console.print(f"no suggestion: {verdict.refused}")
        for note in verdict.notes:
            console.print(f"note: {note}")
    if len(found.verdicts) > 1:
        console.print("note: groups that are trained together bear less than each alone; sweep all together, too")
    for name, rate in found.learning_rates.items():
        verdict = found.verdicts.get(name) or found.verdicts[ALL]
        console.print(f"suggested for `{name}`: {tidy(rate):g}  (confidence {verdict.confidence:.2f})")


def _title(name: str, found: RangeTest) -> str:
    if name != ALL:
        return f"smoothed loss against the learning rate of `{name}` alone"
    names = list(found.base_rates)
    return f"smoothed loss against the learning rate of `{names[-1]}`" + ("; all groups rise" if len(names) > 1 else "")


def _measure(wanted: Recipe, ready: Prepared, settings: Range, console: Console) -> RangeTest:
    with progress_bar(console, "LR range test") as on_step:
        return lr_range_test(
            ready.model,
            build_batches(wanted, ready.examples),
            base_rates=ready.peaks,
            on_step=on_step,
            **vars(settings),
        )


# -- Into the recipe --------------------------------------------------------------------------------------------------


def _check_writable(wanted: Recipe, path: Path, settings: Range) -> None:
    """Tells what cannot be written before the work, not after it."""
    if isinstance(wanted.groups, Strategy) and (settings.group or settings.each):
        raise RecipeError(
            f"{place_of(wanted, 'groups')}: a strategy gives its groups rates with fixed ratios, so a rate of one "
            "group alone cannot be written. Sweep all together, or list them: `finetune suggest` writes such a list."
        )
    groups = [group.name for group in wanted.groups if not group.frozen] if isinstance(wanted.groups, tuple) else [""]
    scaled_text(wanted, path, dict.fromkeys(groups, 1.0))
    if not (os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)):
        raise RecipeError(f"`--write` changes the recipe. `{path}` or its folder is write-protected. Use a copy.")


def _factors(ready: Prepared, found: RangeTest) -> dict[str, float]:
    return {name: rate / ready.peaks[name] for name, rate in found.learning_rates.items()}


def _check_found(found: RangeTest, taker: str, advice: str) -> None:
    if not found.learning_rates:
        reason = next(verdict.refused for verdict in found.verdicts.values())
        raise TrainingError(f"{taker} the rate that an LR range test suggests. It suggests none. {reason} {advice}")


def _write_rates(wanted: Recipe, path: Path, ready: Prepared, found: RangeTest, console: Console) -> None:
    _check_found(found, "`--write` writes", "The recipe is as it was.")
    factors = _factors(ready, found)
    text, changed = scaled_text(wanted, path, factors)
    check_text(text, path, scaled(load_recipe(path), factors))  # other overrides are not written
    with replacing(path.resolve()) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
        shutil.copymode(path, temporary)
    for place, (old, new) in changed.items():
        console.print(f"{place}: {old:g} -> {new:g}")
    if wanted.train.learning_rate == "auto":
        console.print(
            "note: `train.learning_rate: auto` still stands, and will measure again. Remove it to train at these"
        )
