"""The commands that find learning rates: `lr-range` and `suggest`."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import (
    AllowCode,
    Overrides,
    RecipePath,
    app,
    examples,
    make_console,
    naming_options,
    start_command,
)


@app.command(
    "lr-range",
    short_help="Find learning rates by a range test.",
    epilog=examples(
        "finetune lr-range recipe.yaml",
        "finetune lr-range recipe.yaml --each --write",
        "finetune lr-range recipe.yaml --group head --out curves/",
    ),
)
def lr_range(
    recipe: RecipePath,
    group: Annotated[
        str | None, typer.Option(help="Sweep only this layer group.", show_default="all groups, ratios kept")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Sweep each group in turn, and suggest a rate for each.")
    ] = False,
    others: Annotated[
        str, typer.Option(help="The groups that are not swept: `frozen`, or trained at `constant` rates.")
    ] = "frozen",
    start: Annotated[
        float, typer.Option(help="First learning rate (of the last group if all groups are swept).")
    ] = 1e-7,
    end: Annotated[float, typer.Option(help="Last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Number of steps from `--start` to `--end`.")] = 100,
    repeats: Annotated[int, typer.Option(help="Number of sweeps, each on different batches; their mean is used.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder to write the curve to, as JSON, PNG and SVG.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the curve in `--out`; other files there are kept.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the suggested rates into the recipe. Comments are kept.")
    ] = False,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Find learning rates: raise the rate from step to step, watch the loss, and leave no trace."""
    from finetune.training.lr_range.consensus import check_steps
    from finetune.training.lr_range.limits import check_others, check_range

    options = {name: name for name in ("group", "each", "start", "end", "steps", "repeats", "others")}
    with naming_options(**options):  # before TensorFlow starts, which takes seconds
        check_steps(steps)
        check_range(start, end, steps, repeats)
        check_others(others)
    start_command(recipe, overrides, allow_code, out=out, overwrite=overwrite)
    from finetune.commands.lr_range import Range
    from finetune.commands.lr_range import lr_range as measure

    settings = Range(group, each, start, end, steps, repeats, others)
    console = make_console()
    with naming_options(**options):
        result = measure(
            recipe,
            settings,
            out=out,
            overwrite=overwrite,
            write=write,
            overrides=overrides,
            allow_code=allow_code,
            console=console,
        )
    if not result.learning_rates:
        raise typer.Exit(1)


@app.command(
    short_help="Suggest groups by their gradients.",
    epilog=examples("finetune suggest recipe.yaml --by layer", "finetune suggest recipe.yaml --out suggested.yaml"),
)
def suggest(
    recipe: RecipePath,
    by: Annotated[
        str | None,
        typer.Option(help="Measure one group per `layer` or per `block`.", show_default="the recipe's groups"),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(
            help="Rate of the group with the largest |gradient| / |weights|.", show_default="the recipe's highest"
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Number of batches to measure.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write a recipe that extends this one with the groups.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite the file that `--out` names.")] = False,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Suggest groups with rates in proportion to their relative gradient norms (surgical fine-tuning's Auto-RGN)."""
    start_command(recipe, overrides, allow_code)
    from finetune.commands.suggest import suggest_groups

    console = make_console(stderr=out is None)  # then the block alone is on standard output, to be piped
    with naming_options(by="by", peak="peak", num_batches="batches"):
        suggested = suggest_groups(
            recipe,
            by=by,
            peak=peak,
            num_batches=batches,
            out=out,
            overwrite=overwrite,
            overrides=overrides,
            allow_code=allow_code,
            console=console,
        )
    if out is None:
        print(suggested.block)
