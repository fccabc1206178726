"""`finetune plan`: what would happen to every weight, on the real model, without training."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune.build.data import precision
from finetune.build.layout import Prepared, load_allowed, prepare
from finetune.results.tables import LEGEND, PHASED_LEGEND, group_table, phase_notes, phase_table, weight_table


def plan(recipe: str | Path, *, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()) -> Prepared:
    """Does all of `run` that comes before training: what would happen to every weight, on the real model.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.

    Raises:
        FinetuneError: If the input is wrong.
    """
    wanted = load_allowed(recipe, overrides, allow_code)
    with precision(wanted):
        return prepare(wanted)


def tell_network(ready: Prepared, console: Console) -> None:
    """Prints which network it is, and where its weights came from."""
    console.print(f"model: {ready.model.name}, {ready.model.count_params():,} parameters", markup=False)
    if ready.restored:
        console.print(ready.restored.summary(), markup=False)


def tell_plan(ready: Prepared, console: Console, *, every_weight: bool = False) -> None:
    """Prints the plan: where the weights came from, a table of the groups (or of every weight), and advice."""
    tell_network(ready, console)
    legend, data = PHASED_LEGEND if ready.phases else LEGEND, ready.plan.to_json()
    console.print(f"plan: {ready.length.epochs} epochs of {ready.length.steps_per_epoch} steps. {legend}")
    console.print((weight_table if every_weight else group_table)(data))
    if ready.phases:
        console.print(phase_table(data))
        for note in phase_notes(data):
            console.print(note, markup=False)
    if ready.rates_to_measure:
        console.print("note: `train.learning_rate: auto` measures the rates first; these only say their ratios")
    for advice in ready.plan.advice:
        console.print(f"advice: {advice}", markup=False)
