"""`finetune plan`: what would happen to every weight, on the real model, without training."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune.available_memory import available_memory
from finetune.build.data import batch_rows, precision
from finetune.build.distribute import described
from finetune.build.layout import Layout, build_layout
from finetune.build.mixed_precision import with_measured_precision
from finetune.commands.rate_search import sentence_of
from finetune.data.examples import summary
from finetune.errors import counted
from finetune.recipe.loader import load_recipe
from finetune.results.formatting import size_text
from finetune.results.run_folder import free_bytes
from finetune.results.tables import (
    LEGEND,
    PHASED_LEGEND,
    group_table,
    native_text,
    phase_notes,
    phase_table,
    weight_table,
)
from finetune.training.checkpoints.checkpoint_writer import IN_BACKGROUND
from finetune.training.saving import disk_need, memory_advice


def plan(recipe: str | Path, *, overrides: Sequence[str] = (), allow_code: Sequence[str] = ()) -> Layout:
    """Does everything that `run` does before training.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.

    Returns:
        The layout of the run. Its `plan` says what will happen to every weight; its `model` is compiled and has its
        pretrained weights.

    Raises:
        FinetuneError: The input is wrong.
    """
    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    loaded, chosen = with_measured_precision(loaded)
    with precision(loaded):
        return build_layout(loaded, chosen)


def print_model(layout: Layout, console: Console) -> None:
    """Prints the model's name and size, and where its weights come from."""
    console.print(f"model: {layout.model.name}, {layout.model.count_params():,} parameters", markup=False)
    if layout.restored:
        console.print(layout.restored.summary(), markup=False)


def disk_need_of(layout: Layout) -> tuple[int, int]:
    """Returns what `disk_need` does of a run."""
    slots, cooldown = layout.recipe.train.checkpoint_optimizer, layout.cooldown_at
    return disk_need(layout.model, layout.length.epochs, slots=slots, more_checkpoints=cooldown is not None)


def print_plan(layout: Layout, console: Console, *, every_weight: bool = False, out: Path | None = None) -> None:
    """Prints the model, a table of the groups, the phases, the room on the disk and the advice.

    Args:
        layout: The layout of the run.
        console: Where to print.
        every_weight: Whether the table has a row for every weight instead of every group.
        out: The run folder; `None` for one below `runs`.
    """
    print_model(layout, console)
    if layout.examples.source:
        console.print(f"data: {summary(layout.examples)}", markup=False)
    for sentence in (*layout.chosen, *layout.inputs):
        console.print(sentence, markup=False, highlight=False)
    data, length = layout.plan.to_json(), layout.length
    legend = PHASED_LEGEND if layout.plan.phases else LEGEND
    of_each = counted(length.steps_per_epoch, "step")
    console.print(f"plan: {counted(length.epochs, 'epoch')} of {of_each}. {legend}")
    if layout.distribution.replicas > 1:
        text = described(layout.distribution, batch_rows(layout.recipe), layout.model)
        console.print(text, markup=False, highlight=False)
    console.print((weight_table if every_weight else group_table)(data))
    if layout.plan.phases:
        console.print(phase_table(data))
        for note in phase_notes(data):
            console.print(note, markup=False)
    if layout.plan.native:
        console.print(
            f"kernels: native where they apply, in {native_text(layout.plan.native)}", markup=False, highlight=False
        )
    if layout.rates_to_measure:
        console.print(
            "note: `train.learning_rate: auto` measures the rates before training; these only give their ratios"
        )
    if layout.rates_to_search:
        console.print(f"note: {sentence_of(layout)}", highlight=False, markup=False)
    needed, checkpoint = disk_need_of(layout)
    slots = checkpoint - disk_need(layout.model, length.epochs, slots=False)[1]
    part = f"{size_text(slots)} of it slots of the optimizers" if slots else "without the slots of the optimizers"
    free = free_bytes(out or Path("runs"))
    copied = (
        ". Checkpoints are copied in memory, and written while training goes on" if checkpoint > IN_BACKGROUND else ""
    )
    console.print(
        f"disk: a run takes up to {size_text(needed)}, a checkpoint {size_text(checkpoint)}, {part}; {size_text(free)} "
        f"are free{copied}",
        markup=False,
    )
    memory = memory_advice(layout.model, available=available_memory())
    for advice in (*layout.plan.advice, *([memory] if memory else [])):
        console.print(f"advice: {advice}", markup=False)
