"""The command itself, the options that several commands share, and what every command begins with."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune import __version__
from finetune.errors import FinetuneError, RecipeError, printable

if TYPE_CHECKING:
    from rich.console import Console

_EXIT_CODES = (
    "Exit codes: 0; 2 for bad input, where nothing is written; 1 when training or writing failed; 130 after Ctrl-C, "
    "143 after SIGTERM and 129 after SIGHUP, where `run` first saves the weights. A second signal ends it at once."
)
app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a pretrained Keras network with an optimizer and a decaying learning rate for each layer group.\n\n"
    "Start with `finetune new --data PATH`, or with a recipe of the package: `finetune recipes`. Then `finetune check "
    "recipe.yaml` (is it valid?), `finetune plan recipe.yaml` (what will happen to every weight?), and `finetune run "
    "recipe.yaml`.\n\n" + _EXIT_CODES,
)


def _keys_that_begin(text: str) -> list[str]:
    """Returns the keys of a recipe that begin so, as `--set` takes them, for the completion of the shell."""
    if "=" in text:
        return []
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.recipe.keys import blocks

    keys = (
        f"{block.path}.{key.name}=".lstrip(".") for block in blocks() for key in block.keys if "(" not in block.path
    )
    return sorted({key for key in keys if key.startswith(text) and not key.startswith(("groups.", "phases."))})


RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the recipe, e.g. `groups.head.learning_rate=1e-3`. Repeatable.",
        autocompletion=_keys_that_begin,
    ),
]
AllowCode = Annotated[
    list[str],
    typer.Option(
        "--allow-code",
        metavar="CODE",
        help="Allow code to run: a package that the recipe names, or `hub:HANDLE`, a SavedModel's graph. Repeatable.",
    ),
]


def examples(*lines: str) -> str:
    """Returns command lines for the end of a help text; `\\b` keeps Click from joining the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Accepted anywhere on the command line.")
    ] = False,
) -> None:
    """Handles the options that go without a command. The help text is in `typer.Typer(help=...)` above."""
    if version:
        print(f"finetune {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        # `no_args_is_help` does the same, but exits 0 or 2 depending on the version of Click.
        print(context.get_help())
        raise typer.Exit(2)


def make_console(*, stderr: bool = False) -> "Console":
    """Makes the console that a command prints to; a file or a pipe has 160 columns."""
    from finetune.results.console import plain_console  # not at the top: `check` and `--help` must answer at once

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 160
    return plain_console(stderr=stderr, width=width)


@contextmanager
def naming_options(**options: str) -> Iterator[None]:
    """Names, in a refusal, the options that the user typed: `--steps` where the function below says `steps`.

    A message with the place of a key in a recipe is about that key and stays as it is.

    Args:
        options: The option of each argument of the function, without its dashes.
    """
    try:
        yield
    except FinetuneError as error:
        if isinstance(error, RecipeError) or error.exit_code != 2:
            raise
        names = "|".join(options)
        text = re.sub(rf"`({names})`", lambda match: f"`--{options[match[1]]}`", str(error))
        text = re.sub(rf"\b({names})=", lambda match: f"--{options[match[1]]} ", text)
        raise type(error)(text) from error


def print_comparison(runs: Sequence[Path], out: Path | None = None) -> None:
    """Compares runs, prints the tables and writes the page, if one is wanted."""
    from finetune.commands.compare import compare
    from finetune.results.tables import plain_table

    console = make_console()
    for title, heads, rows in compare(runs, out=out):
        console.print(f"\n{printable(title)}", highlight=False, markup=False)
        console.print(plain_table(heads, rows))


def start_command(
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    *,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    joins: bool = False,
) -> None:
    """Starts TensorFlow, which takes seconds, after whatever can be checked without it.

    Args:
        recipe: The recipe to check first; `None` for a command without.
        overrides: Changes to it.
        allow_code: Packages whose code it may run.
        out: The run folder, for a command that writes to it.
        overwrite: Whether the folder may hold files.
        resume: Whether it may hold a run that goes on.
        joins: Whether several workers, where the environment names some, do it together; the caller ends that.
    """
    from finetune.commands.check import check as check_recipe
    from finetune.startup import lasting_imports, start_tensorflow

    if recipe is not None:
        options = {
            "overrides": overrides,
            "allow_code": allow_code,
            "out": out,
            "overwrite": overwrite,
            "resume": resume,
        }
        check_recipe(recipe, **options, shows_graphs=True)
    prepare = lambda: None  # noqa: E731
    if recipe is not None:
        from finetune.recipe.loader import load_recipe
        from finetune.startup import divide_cpu

        if cpu_devices := load_recipe(recipe, overrides=overrides, allow_code=allow_code).distribute.cpu_devices:
            prepare = partial(divide_cpu, cpu_devices)
    if joins and recipe is not None:
        from finetune.commands.several_workers import join_workers

        prepare = join_workers(recipe, overrides, out=out, resume=resume) or prepare
    with nullcontext() if "keras" in sys.modules else lasting_imports():
        start_tensorflow(prepare)
        import keras  # noqa: F401
