"""The commands on runs that have ended, and `env`: options and printing."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, app, examples, make_console, print_comparison, start_command
from finetune.errors import printable, printable_lines

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]


@app.command(short_help="Write the report of a run again.", epilog=examples("finetune report runs/digits-1"))
def report(run: RunFolder) -> None:
    """Write the report of a run again, as one page without scripts, from the files in its folder."""
    from finetune.commands.report import write_report

    print(printable(f"written: {write_report(run)}"))


@app.command(short_help="Check that the files of a run are unchanged.", epilog=examples("finetune audit runs/digits-1"))
def audit(run: RunFolder) -> None:
    """Check that every file of a finished run, and every file that it has read, is as it was; exits 1 if not."""
    from finetune.commands.audit import audit as check_files
    from finetune.commands.audit import audit_lines

    result = check_files(run)
    print(printable_lines("\n".join(audit_lines(result))))
    raise typer.Exit(0 if result.holds else 1)


@app.command(
    short_help="Run a recipe again, and compare bit for bit.", epilog=examples("finetune repeat runs/digits-1")
)
def repeat(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="Where the repetition is kept.", show_default="it is removed")
    ] = None,
    allow_code: AllowCode = [],  # noqa: B006 - typer reads the default
) -> None:
    """Run the recipe of a finished run again, and compare the weights bit for bit; exits 1 if they differ."""
    from finetune.results.run_folder import check_holds_run

    check_holds_run(run, "A run is repeated.")
    start_command(run / "recipe.yaml", (), allow_code, out=out)
    from finetune.commands.repeat import repeat as repeat_run
    from finetune.commands.repeat import repetition_lines

    result = repeat_run(run, out=out, allow_code=allow_code, console=make_console(stderr=True))
    print(printable_lines("\n".join(repetition_lines(result))))
    raise typer.Exit(0 if result.holds else 1)


@app.command(
    short_help="Show runs beside each other.",
    epilog=examples("finetune compare runs/a runs/b", "finetune compare runs/ --out comparison.html"),
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or a folder that holds some.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Also write a page with the curves of all runs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Show runs beside each other: results, seeds averaged, pairs on the same test rows, and where recipes differ."""
    if json:
        from finetune.commands.compare import compare as compare_runs

        tables = compare_runs(runs, out=out)
        listed = [
            {"title": title, "rows": [dict(zip(heads, row, strict=True)) for row in rows]}
            for title, heads, rows in tables
        ]
        print(dumps(listed, indent=2, ensure_ascii=False))
        return
    print_comparison(runs, out)
    if out:
        print(printable(f"written: {out}"))


@app.command(short_help="Show versions, machine and settings.", epilog=examples("finetune env", "finetune env --json"))
def env(json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Show versions, machine, devices and settings, for a bug report."""
    start_command()
    from finetune.commands.env import environment, environment_text

    print(dumps(environment(), indent=2) if json else printable_lines(environment_text(environment())))
