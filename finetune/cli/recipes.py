"""The commands that show what a recipe says and would do, and those that write one."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, Overrides, RecipePath, app, examples, make_console, start_command
from finetune.errors import FinetuneError, counted, printable, printable_lines


@app.command(
    epilog=examples(
        "finetune check recipe.yaml",
        "finetune check recipe.yaml --deep",
        "finetune check recipe.yaml --set groups.head.learning_rate=1e-3",
    )
)
def check(
    recipe: RecipePath,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also train on a few rows, read every row, and forecast time and memory."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also check that a run could be written to this folder.", show_default=False)
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Check a recipe's spelling and rules in a moment, without loading TensorFlow; with `--deep`, its data too."""
    from finetune.commands.check import check as check_recipe
    from finetune.commands.check import check_deep

    notes = check_recipe(recipe, overrides=overrides, allow_code=allow_code, out=out)
    if deep:
        start_command()
        problems = check_deep(recipe, overrides=overrides, allow_code=allow_code, console=make_console()).problems
        for problem in problems:
            print(printable_lines(f"problem: {problem}."))
        if problems:
            raise typer.Exit(2)
    for note in notes if not deep else ():
        print(printable(f"note: {note}."))
    print(printable(f"{recipe}: valid. See what it does with `finetune plan {recipe}`."))


@app.command(
    epilog=examples(
        "finetune plan recipe.yaml",
        "finetune plan recipe.yaml --weights",
        "finetune plan recipe.yaml --json > plan.json",
    )
)
def plan(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    weights: Annotated[bool, typer.Option("--weights", help="A row for every weight instead of every group.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would happen to every weight, on the real model, without training."""
    start_command(recipe, overrides, allow_code)
    from finetune.commands.plan import plan as plan_recipe
    from finetune.commands.plan import print_plan

    layout = plan_recipe(recipe, overrides=overrides, allow_code=allow_code)
    if json:
        print(dumps(layout.plan.to_json(), indent=2))
    else:
        print_plan(layout, make_console(), every_weight=weights)
        if layout.phases_block:
            print(f"\n# The strategy as a list, to paste into the recipe and edit:\n{layout.phases_block}", end="")


@app.command(epilog=examples("finetune data recipe.yaml", "finetune data recipe.yaml --sheet images.png"))
def data(
    recipe: RecipePath,
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG file to draw some training images of each class to.", show_default=False)
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Show what was understood of the data: splits, types of columns, classes, and some images."""
    start_command(recipe, overrides, allow_code)
    from finetune.commands.data import show_data

    show_data(recipe, sheet=sheet, overrides=overrides, allow_code=allow_code, console=make_console())


@app.command(epilog=examples("finetune keys", "finetune keys train", "finetune keys gradual_unfreezing"))
def keys(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="A key such as `train` or `data.split`, or the name of a schedule or strategy.",
            show_default=False,
        ),
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
) -> None:
    """List what can be written in a recipe: every key with its values, default and meaning."""
    from finetune.commands.keys import show_keys

    show_keys(name, as_markdown=markdown, console=make_console())


@app.command(epilog=examples("finetune schema > recipe.schema.json", "finetune schema --out recipe.schema.json"))
def schema(
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="standard output")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Print the JSON schema of a recipe, by which an editor completes keys and shows what each of them means."""
    from finetune.commands.schema import editor_line, schema_text

    if out is None:
        print(schema_text(), end="")
        return
    from finetune.results.new_files import check_new_file
    from finetune.results.run_folder import write_text

    check_new_file(out, overwrite=overwrite)
    write_text(out, schema_text())
    print(printable(f"written: {out}. Begin a recipe beside it with: {editor_line(out, out.parent)}"))


@app.command(epilog=examples("finetune fill recipe.yaml", "finetune fill recipe.yaml --out filled.yaml"))
def fill(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="standard output")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a recipe with all defaults written out, each with its meaning; comments are kept."""
    from finetune.commands.fill import fill as fill_recipe

    text = fill_recipe(recipe, out, overwrite=overwrite)
    print(printable(f"written: {out}") if out else text, end="\n" if out else "")


@app.command(
    epilog=examples(
        "finetune recipes", "finetune recipes digits wine", "finetune recipes digits --out tried --overwrite"
    )
)
def recipes(
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME...]", help="Recipes to copy; none lists them.", show_default=False)
    ] = [],  # noqa: B006 - typer reads the default
    out: Annotated[Path, typer.Option(help="The folder to copy into.")] = Path("recipes"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite existing files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the recipes that come with the package, or copy some with the weights and tables that they need."""
    from dataclasses import asdict

    from finetune.commands.shipped_recipes import copy_recipes, shipped_recipes

    if json and names:
        raise FinetuneError("`--json` prints the list of all recipes. Remove the names, or `--json`.")
    every = {each.name: each for each in shipped_recipes()}
    if json:
        print(dumps([asdict(each) for each in every.values()], indent=2))
    for about in () if json or names else every.values():
        print(printable(f"{about.name}: {about.shows}"))
        print(printable(f"    takes {about.takes}") if about.takes else "", end="\n" if about.takes else "")
        if about.missing:
            print(printable(f"    needs {counted(len(about.missing), 'file')} that `{about.fetched_by}` fetches"))
    if not names and not json:
        print("\nCopy some with `finetune recipes NAME...`.")
    for path in copy_recipes(names, out, overwrite=overwrite) if names else ():
        about = every[path.stem]
        print(printable(f"written: {path}. Run it with `finetune run {path}`."))
        if about.missing:
            print(printable(f"    first: `{about.fetched_by}`, for {', '.join(about.missing)}"))
