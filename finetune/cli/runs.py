"""The commands that train, and those that read what a run has left: options and printing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.application import (
    AllowCode,
    Overrides,
    RecipePath,
    app,
    examples,
    make_console,
    print_comparison,
    start_command,
)
from finetune.errors import FinetuneError, printable

OutOption = Annotated[
    Path | None, typer.Option(help="The run folder.", show_default="the next free runs/<recipe>-<number>")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in `--out`; other files there are kept.")
]
RecalibrateOption = Annotated[
    bool, typer.Option("--recalibrate", help="Re-estimate the BatchNormalization statistics after training.")
]
TimeLimitOption = Annotated[
    str | None,
    typer.Option(
        "--time-limit",
        metavar="TIME",
        help="End the training after `90s`, `20m`, `1h30m`; in the last tenth the rates fall to 0.",
        show_default=False,
    ),
]


@app.command(
    short_help="Fine-tune, and prove what happened.",
    epilog=examples(
        "finetune run recipes/digits.yaml",
        "finetune run recipe.yaml --out runs/first --set train.epochs=3",
        "finetune run recipe.yaml --out runs/first --resume",
        "finetune run recipe.yaml --out runs/five --seeds 5",
    ),
)
def run(
    recipe: RecipePath,
    out: OutOption = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default
    allow_code: AllowCode = [],  # noqa: B006
    time_limit: TimeLimitOption = None,
    overwrite: OverwriteOption = False,
    recalibrate: RecalibrateOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in `--out` where it was stopped or killed; begin one if there is none."
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Run with so many seeds, from that of the recipe on, each in `--out`/seed-N, and compare them."
        ),
    ] = None,
) -> None:
    """Fine-tune as a recipe says, and prove what was restored, trained and left unchanged."""
    if seeds is not None:
        if overwrite:
            raise FinetuneError("`--seeds` goes on with the runs that are there. Remove `--overwrite`, or the folder.")
        _run_seeds(recipe, out, seeds, _with_limit(overrides, time_limit), allow_code, recalibrate=recalibrate)
        return
    _run(
        recipe,
        out,
        _with_limit(overrides, time_limit),
        allow_code,
        overwrite=overwrite,
        recalibrate=recalibrate,
        resume=resume,
    )


@app.command(
    short_help="Fine-tune in several processes.",
    epilog=examples(
        "finetune launch --workers 2 recipes/digits.yaml",
        "finetune launch --workers 2 recipe.yaml --out runs/first --resume",
    ),
)
def launch(
    recipe: RecipePath,
    workers: Annotated[int, typer.Option(min=2, help="How many processes of this machine train.", show_default=False)],
    out: OutOption = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default
    allow_code: AllowCode = [],  # noqa: B006
    time_limit: TimeLimitOption = None,
    overwrite: OverwriteOption = False,
    recalibrate: RecalibrateOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in `--out`, also with another number of workers.")
    ] = False,
) -> None:
    """Run a recipe in several processes, each of which takes its part of every batch; the results are those of one."""
    from finetune.commands.launch import launch_run

    code = launch_run(
        recipe,
        workers,
        out,
        overrides=_with_limit(overrides, time_limit),
        allow_code=allow_code,
        overwrite=overwrite,
        recalibrate=recalibrate,
        resume=resume,
    )
    raise typer.Exit(code)


@app.command(
    short_help="Go on with a run that was stopped.",
    epilog=examples("finetune resume runs/digits-1", "finetune resume runs/digits-1 --set train.epochs=40"),
)
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default
    allow_code: AllowCode = [],  # noqa: B006
    time_limit: TimeLimitOption = None,
    other_data: Annotated[
        bool,
        typer.Option("--other-data", help="The data in the same place have changed: go on with those of now."),
    ] = False,
) -> None:
    """Go on with a run that was stopped or killed, bit for bit; with `--set`, train it for longer, or otherwise."""
    from finetune.results.run_folder import check_holds_run

    check_holds_run(run, "A run goes on in its run folder.")
    changed = _with_limit(overrides, time_limit)
    _run(run / "recipe.yaml", run, changed, allow_code, resume=True, other_data=other_data)


def _run_seeds(
    recipe: Path,
    out: Path | None,
    seeds: int,
    overrides: Sequence[str],
    allow_code: Sequence[str],
    *,
    recalibrate: bool,
) -> None:
    """Runs a recipe with several seeds and prints how they compare."""
    from finetune.commands.check import check as check_recipe
    from finetune.commands.seeds import run_seeds

    check_recipe(recipe, overrides=overrides, allow_code=allow_code)
    options = [part for each in allow_code for part in ("--allow-code", each)]
    options += ["--recalibrate"] if recalibrate else []
    folder = run_seeds(recipe, out, seeds, overrides=overrides, options=options)
    print_comparison([folder])


def _with_limit(overrides: Sequence[str], time_limit: str | None) -> Sequence[str]:
    from finetune.recipe.durations import seconds_of

    if time_limit is None:
        return overrides
    return [*overrides, f"train.time_limit_seconds={seconds_of(time_limit, '`--time-limit`')}"]


def _run(
    recipe: Path,
    out: Path | None,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    *,
    overwrite: bool = False,
    recalibrate: bool = False,
    resume: bool = False,
    other_data: bool = False,
) -> None:
    """Runs a recipe, or goes on with a run, and prints what came of it."""
    from finetune.commands.finished_run import finished, has_changed
    from finetune.results.run_folder import check_can_resume, is_finished

    if resume:
        check_can_resume(out, overwrite=overwrite)
        if out and is_finished(out) and not other_data and not has_changed(out, recipe, overrides):
            print(printable(f"{finished(out)}."))
            return
    start_command(recipe, overrides, allow_code, out=out, overwrite=overwrite, resume=resume, joins=True)
    from finetune.commands.run import run as run_recipe
    from finetune.commands.run import train_beside_chief
    from finetune.commands.several_workers import as_worker

    console = make_console()
    options: dict[str, Any] = {"overrides": overrides, "allow_code": allow_code, "console": console}
    options |= {"overwrite": overwrite, "recalibrate": recalibrate, "resume": resume, "other_data": other_data}
    with as_worker(out, resume=resume) as folder:
        if folder != out and folder:
            own = folder / "recipe.yaml"
            train_beside_chief(own if out and recipe == out / "recipe.yaml" else recipe, folder, **options)
            return
        result = run_recipe(recipe, out, **options)
    console.print(f"written: {result.folder}")
