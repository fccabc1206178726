"""The commands that show what a recipe says and would do, and those that write one."""

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, Overrides, RecipePath, app, examples, make_console, start_command
from finetune.errors import FinetuneError, did_you_mean, printable, printable_lines

_MOST_LINES = 40  # of a strategy below the plan, whose advice would scroll away


@app.command(
    short_help="Check a recipe, in a moment.",
    epilog=examples(
        "finetune check recipe.yaml",
        "finetune check recipe.yaml --deep",
        "finetune check recipe.yaml --set groups.head.learning_rate=1e-3",
    ),
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
    json: Annotated[bool, typer.Option("--json", help="Print problems and notes as JSON.")] = False,
) -> None:
    """Check a recipe's spelling and rules in a moment, without loading TensorFlow; with `--deep`, its data too."""
    from finetune.commands.check import check as check_recipe
    from finetune.commands.check import check_as_data, check_deep

    try:
        notes = check_recipe(recipe, overrides=overrides, allow_code=allow_code, out=out)
        problems: list[str] = []
        if deep:
            start_command(recipe, overrides, allow_code)
            console = make_console(stderr=json)
            problems = check_deep(recipe, overrides=overrides, allow_code=allow_code, console=console).problems
    except FinetuneError as error:
        if not json or error.exit_code != 2:
            raise
        print(dumps(check_as_data(str(error).splitlines()), indent=2, ensure_ascii=False))
        raise typer.Exit(2) from None
    if json:
        print(dumps(check_as_data([f"{problem}." for problem in problems], notes), indent=2, ensure_ascii=False))
    for problem in () if json else problems:
        print(printable_lines(f"problem: {problem}."))
    if problems:
        raise typer.Exit(2)
    for note in () if json or deep else notes:
        print(printable(f"note: {note}."))
    if not json:
        print(printable(f"{recipe}: valid. See what it does with `finetune plan {recipe}`."))


@app.command(
    short_help="Show what would happen to every weight.",
    epilog=examples(
        "finetune plan recipe.yaml",
        "finetune plan recipe.yaml --weights",
        "finetune plan recipe.yaml --json > plan.json",
    ),
)
def plan(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    weights: Annotated[bool, typer.Option("--weights", help="A row for every weight instead of every group.")] = False,
    phases: Annotated[
        bool, typer.Option("--phases", help="Print a strategy of phases as a list, to paste into the recipe and edit.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would happen to every weight, on the real model, without training."""
    start_command(recipe, overrides, allow_code)
    from finetune.commands.plan import plan as plan_recipe
    from finetune.commands.plan import print_plan

    layout = plan_recipe(recipe, overrides=overrides, allow_code=allow_code)
    block = layout.phases_block or ""
    if phases and not block:
        raise FinetuneError(
            f"`--phases` prints the phases of a strategy, and `{recipe}` names none. Name one, as in `--set "
            "phases=gradual_unfreezing`, or remove `--phases`."
        )
    if json:
        print(dumps(layout.plan.to_json(), indent=2))
        return
    if not phases:
        print_plan(layout, make_console(), every_weight=weights)
    lines = block.count("\n")
    if phases or 0 < lines <= _MOST_LINES:
        print(("" if phases else "\n# The strategy as a list, to paste into the recipe and edit:\n") + block, end="")
    elif block:
        print(
            f"\nThe strategy as a list, to paste into the recipe and edit, has {lines} lines: `--phases` prints them."
        )


@app.command(
    short_help="Show what was understood of the data.",
    epilog=examples("finetune data recipe.yaml", "finetune data recipe.yaml --sheet images.png"),
)
def data(
    recipe: RecipePath,
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG file to draw some training images of each class to.", show_default=False)
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON, as `data.json` of a run has it.")] = False,
) -> None:
    """Show what was understood of the data: splits, types of columns, classes, and some images."""
    start_command(recipe, overrides, allow_code)
    from finetune.commands.data import show_data

    console = make_console(stderr=json)
    described = show_data(recipe, sheet=sheet, overrides=overrides, allow_code=allow_code, console=console)
    if json:
        print(dumps(described, indent=2, ensure_ascii=False))


@app.command(
    short_help="List the keys of a recipe.",
    epilog=examples("finetune keys", "finetune keys train", "finetune keys gradual_unfreezing"),
)
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
    json: Annotated[bool, typer.Option("--json", help="Print the keys as JSON.")] = False,
) -> None:
    """List what can be written in a recipe: every key with its values, default and meaning."""
    from finetune.commands.keys import keys_as_data, show_keys

    if json:
        print(dumps(keys_as_data(name), indent=2, ensure_ascii=False))
    else:
        show_keys(name, as_markdown=markdown, console=make_console())


@app.command(
    short_help="Write a recipe for your data.",
    epilog=examples(
        "finetune new --data photos/",
        "finetune new --data photos/ --model MobileNetV2 --out recipes/photos.yaml",
        "finetune new --data houses.csv --target price --task number",
        "finetune new --data reviews.tsv --model presets/bert_tiny",
    ),
)
def new(
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of classes (images or WAV files), a table, a .npz file, or .tfrecord files.",
            show_default="it is asked for",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The column to predict.", show_default="by names and values")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What the target is: classes, labels or number.", show_default="by its values")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="`small`, a network of keras.applications, a file, a folder, or `package.module:function`.",
            show_default="asked for, or small",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of a network of keras.applications: imagenet, none or a file.", show_default="imagenet"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Look at data, and write a commented recipe for them that runs as it is; on a terminal, ask what is not clear."""
    from finetune.commands.new import new_recipe
    from finetune.commands.new_choices import Wishes

    ask = _ask if sys.stdin.isatty() and sys.stdout.isatty() else None
    for line in new_recipe(out, Wishes(data, task, model, weights, target), ask=ask, overwrite=overwrite):
        print(printable(line))


def _ask(question: str, answers: Sequence[str], default: str) -> str:
    """Asks on the terminal; an answer that is not among those offered is asked for again."""
    shown = f"{question} ({', '.join(map(printable, answers))})" if answers else question
    while True:
        answer = str(typer.prompt(shown, default=default or None))
        if not answers or answer in answers:
            return answer
        print(printable(f"`{answer}` is none of them.{did_you_mean(answer, answers)}"))


@app.command(
    short_help="Print the JSON schema of a recipe.",
    epilog=examples("finetune schema > recipe.schema.json", "finetune schema --out recipe.schema.json"),
)
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


@app.command(
    short_help="Write a recipe with all its defaults.",
    epilog=examples("finetune fill recipe.yaml", "finetune fill recipe.yaml --out filled.yaml"),
)
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
    short_help="List or copy the recipes that come along.",
    epilog=examples(
        "finetune recipes", "finetune recipes digits wine", "finetune recipes digits --out tried --overwrite"
    ),
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
        if about.needs:
            print(f"    needs what `finetune fetch {' '.join(about.needs)}` brings")
    if not names and not json:
        print("\nCopy some with `finetune recipes NAME...`.")
    for path in copy_recipes(names, out, overwrite=overwrite) if names else ():
        about = every[path.stem]
        print(printable(f"written: {path}. Run it with `finetune run {path}`."))
        if about.needs:
            place = "" if out == Path("recipes") else f" --out {out}"
            print(printable(f"    first: `finetune fetch {' '.join(about.needs)}{place}`"))
