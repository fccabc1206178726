"""The `finetune` command: options and printing. The work is done below."""

import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune import __version__
from finetune.errors import FinetuneError, printable, printable_lines, reason
from finetune.interruption import stoppable, stopped
from finetune.machine_failures import failure_text
from finetune.results.lenient_output import lenient, open_closed_streams

if TYPE_CHECKING:
    from rich.console import Console

_EXIT_CODES = (
    "Exit codes: 0; 2 for bad input, where nothing is written; 1 when training or writing failed; 130 after Ctrl-C, "
    "143 after SIGTERM and 129 after SIGHUP, where `run` first saves the weights. A second signal ends it at once."
)
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a pretrained Keras network with an optimizer and a decaying learning rate for each layer group.\n\n"
    "Start with `finetune check recipe.yaml` (is it valid?), then `finetune plan recipe.yaml` (what will happen "
    "to every weight?), then `finetune run recipe.yaml`.\n\n" + _EXIT_CODES,
)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Override = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the recipe, e.g. `groups.head.learning_rate=1e-3`. Repeatable."
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


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="The run folder.", show_default="the next free runs/<recipe>-<number>")
    ] = None,
    overrides: Override = [],  # noqa: B006 - typer reads the default
    allow_code: AllowCode = [],  # noqa: B006
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in `--out`; other files there are kept.")
    ] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Re-estimate the BatchNormalization statistics after training.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in `--out` where it was stopped or killed; begin one if there is none."
        ),
    ] = False,
) -> None:
    """Fine-tune as a recipe says, and prove what was restored, trained and left unchanged."""
    _run(recipe, out, overrides, allow_code, overwrite=overwrite, recalibrate=recalibrate, resume=resume)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Go on with a run that was stopped or killed; it ends as if nothing had happened, bit for bit."""
    from finetune.results.run_folder import is_run

    if not is_run(run):
        raise FinetuneError(
            f"A run goes on in its run folder. `{run}` is none: it has no `recipe.yaml` and `plan.txt`. Name the "
            "folder that the run has printed, such as `runs/digits-1`."
        )
    _run(run / "recipe.yaml", run, allow_code=allow_code, resume=True)


def _run(
    recipe: Path,
    out: Path | None,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    *,
    overwrite: bool = False,
    recalibrate: bool = False,
    resume: bool = False,
) -> None:
    """Runs a recipe, or goes on with a run, and prints what came of it."""
    from finetune.results.run_folder import check_can_resume, is_finished

    if resume:
        check_can_resume(out, overwrite=overwrite)
        if out and is_finished(out):
            print(
                printable(
                    f"{out}: the run is finished, and is not trained again. To train anew, choose another folder."
                )
            )
            return
    _start(recipe, overrides, allow_code, out=out, overwrite=overwrite, resume=resume)
    from finetune.commands.run import print_class_results
    from finetune.commands.run import run as run_recipe

    console = _console()
    result = run_recipe(
        recipe,
        out,
        overrides=overrides,
        allow_code=allow_code,
        overwrite=overwrite,
        recalibrate=recalibrate,
        resume=resume,
        console=console,
    )
    for name, value in result.metrics.items():
        console.print(f"test {name}: {value:.4f}  (before: {result.metrics_before[name]:.4f})")
    if score := ", ".join(f"{name} {value:.4f}" for name, value in result.metrics_of_mean.items()):
        console.print(f"without inputs: {score}  (the mean of the training targets as the answer for every row)")
    for output, classes in result.classes.items():
        print_class_results(classes, output, console)
    if any(phase.frozen_tensors for phase in result.phases):
        console.print("proof: the tensors frozen in each phase are bit-identical after it")
    if result.frozen_tensors:
        console.print(f"proof: all {result.frozen_tensors} frozen tensors are bit-identical to the start")
    console.print(f"written: {result.folder}")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    weights: Annotated[bool, typer.Option("--weights", help="A row for every weight instead of every group.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would happen to every weight, on the real model, without training."""
    _start(recipe, overrides, allow_code)
    from finetune.commands.plan import plan as plan_recipe
    from finetune.commands.plan import print_plan

    layout = plan_recipe(recipe, overrides=overrides, allow_code=allow_code)
    if json:
        print(dumps(layout.plan.to_json(), indent=2))
    else:
        print_plan(layout, _console(), every_weight=weights)
        if layout.phases_block:
            print(f"\n# The strategy as a list, to paste into the recipe and edit:\n{layout.phases_block}", end="")


@app.command("lr-range")
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
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Find learning rates: raise the rate from step to step, watch the loss, and leave no trace."""
    _start(recipe, overrides, allow_code, out=out, overwrite=overwrite)
    from finetune.commands.lr_range import Range
    from finetune.commands.lr_range import lr_range as measure

    settings = Range(group, each, start, end, steps, repeats, others)
    console = _console()
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


@app.command()
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
    batches: Annotated[int, typer.Option(help="Number of batches to measure.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write a recipe that extends this one with the groups.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite the file that `--out` names.")] = False,
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Suggest groups with rates in proportion to their relative gradient norms (surgical fine-tuning's Auto-RGN)."""
    _start(recipe, overrides, allow_code)
    from finetune.commands.suggest import suggest_groups

    console = _console(stderr=out is None)  # then the block alone is on standard output, to be piped
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


@app.command()
def check(
    recipe: RecipePath,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also train on a few rows, read every row, and forecast time and memory."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also check that a run could be written to this folder.", show_default=False)
    ] = None,
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Check a recipe's spelling and rules in a moment, without loading TensorFlow; with `--deep`, its data too."""
    from finetune.commands.check import check as check_recipe
    from finetune.commands.check import check_deep

    check_recipe(recipe, overrides=overrides, allow_code=allow_code, out=out)
    if deep:
        _start()
        problems = check_deep(recipe, overrides=overrides, allow_code=allow_code, console=_console()).problems
        for problem in problems:
            print(printable_lines(f"problem: {problem}."))
        if problems:
            raise typer.Exit(2)
    print(printable(f"{recipe}: valid. See what it does with `finetune plan {recipe}`."))


@app.command()
def data(
    recipe: RecipePath,
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG file to draw some training images of each class to.", show_default=False)
    ] = None,
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Show what was understood of the data: splits, types of columns, classes, and some images."""
    _start(recipe, overrides, allow_code)
    from finetune.commands.data import show_data

    show_data(recipe, sheet=sheet, overrides=overrides, allow_code=allow_code, console=_console())


@app.command()
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

    show_keys(name, as_markdown=markdown, console=_console())


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="A file, folder or archive of weights, or a checkpoint's prefix.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List what a file of pretrained weights holds: name, role, shape, type and size of each tensor."""
    from finetune.commands.inspect import inspect as inspect_file

    print(inspect_file(path, json=json))


@app.command()
def reference(
    source: Annotated[
        Path, typer.Argument(help="A whole model (.keras, .h5), a SavedModel, or a recipe.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The .npz file to write.", show_default=False)],
    inputs: Annotated[
        Path | None,
        typer.Option("--input", help="A .npy or .npz file of inputs.", show_default="a recipe's first test rows"),
    ] = None,
    layers: Annotated[
        list[str],
        typer.Option(
            "--layer", metavar="NAME", help="Write the output of this layer instead of the model's. Repeatable."
        ),
    ] = [],  # noqa: B006 - typer reads the default
    overrides: Override = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the outputs of a network for some inputs, for `restore.verify` to compare a restored network with."""
    _start()
    from finetune.commands.reference import write_reference
    from finetune.results.file_listing import shape_text

    written = write_reference(
        source,
        out,
        inputs=inputs,
        layers=layers,
        overrides=overrides,
        allow_code=allow_code,
        overwrite=overwrite,
    )
    for name, shape in written.items():
        print(f"{printable(name)}: {shape_text(shape)}")
    print(printable(f"written: {out}. Compare with it in a recipe: `restore: {{verify: {out}}}`."))


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


def _console(*, stderr: bool = False) -> "Console":
    from finetune.results.console import plain_console  # not at the top: `check` and `--help` must answer at once

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 160
    return plain_console(stderr=stderr, width=width)


def _start(
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    *,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Starts TensorFlow, which takes seconds, after whatever can be checked without it."""
    from finetune.commands.check import check as check_recipe
    from finetune.startup import start_tensorflow

    if recipe is not None:
        options = {
            "overrides": overrides,
            "allow_code": allow_code,
            "out": out,
            "overwrite": overwrite,
            "resume": resume,
        }
        check_recipe(recipe, **options, shows_graphs=True)
    start_tensorflow()


def main() -> None:
    """Runs the command line; exits as `_EXIT_CODES` says."""
    open_closed_streams()
    sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable_lines(str(message))}\n"
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    code: int | str | None = 0
    with stoppable():
        try:
            app(arguments)  # always raises: click ends with `SystemExit`
        except BaseException as error:
            code = _reported(error, debug=len(arguments) < len(sys.argv) - 1)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal while Python shuts down prints no traceback
    sys.exit(code)


def _reported(error: BaseException, *, debug: bool) -> int | str | None:
    """Prints an error, and returns the exit code of the process."""
    stop = stopped()
    if isinstance(error, SystemExit) and not (stop and error.code):
        sys.stdout.flush()
        if not error.code and (failure := getattr(sys.stdout, "failure", None)):
            print(f"error: Part of the output could not be written: {failure.strerror}.", file=sys.stderr)
            return 1
        return error.code
    if debug:
        print(printable_lines("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if isinstance(error, FinetuneError) and not debug:
        print(f"error: {error}", file=sys.stderr)
    elif not stop and not debug and (text := failure_text(error)):
        print(f"error: {printable_lines(text)}", file=sys.stderr)
    elif not stop and not debug:
        # A fault of finetune itself: a line that says how to see more, instead of a traceback.
        text = printable_lines(f"finetune failed with {type(error).__name__}: {reason(error)}")
        print(f"error: {text}. `--debug` shows where; please report it.", file=sys.stderr)
    if stop:  # whatever else it is: typer turns the exception into an exit, and TensorFlow into an error of its own
        print(printable_lines(str(stop)), file=sys.stderr)
        return stop.exit_code
    return error.exit_code if isinstance(error, FinetuneError) else 1
