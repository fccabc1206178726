"""The command `export`: a run in a form that other programs run."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, app, examples, make_console, start_command
from finetune.cli.trained import Checkpoint, Run, say_weights


@app.command(
    short_help="Export a run for other programs.",
    epilog=examples(
        "finetune export runs/pets --out pets --format savedmodel",
        "finetune export runs/pets --out pets-small --format litert --quantize int8",
        "finetune export runs/wine --out wine --format onnx --data new-rows.csv",
    ),
)
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    format: Annotated[str, typer.Option(help="savedmodel, hub, keras, litert, onnx or safetensors.")] = "savedmodel",
    quantize: Annotated[
        str | None, typer.Option(help="For litert: int8 or float16.", show_default="32-bit floats")
    ] = None,
    data: Annotated[
        list[Path],
        typer.Option(help="Raw rows to compare the export with the run on. Repeatable.", show_default="test rows"),
    ] = [],  # noqa: B006 - typer reads the default
    checkpoint: Checkpoint = None,
    allow_code: AllowCode = [],  # noqa: B006
) -> None:
    """Export the model of a run with its preprocessing: raw rows in, labels out, compared in a new process."""
    from finetune.inference.exports.formats import check_export
    from finetune.inference.record import open_record

    open_record(run, checkpoint)  # before TensorFlow starts, which takes seconds
    check_export(format, out, quantize)
    start_command()
    from finetune.inference.fine_tuned import load

    fine_tuned = load(run, checkpoint=checkpoint, allow_code=allow_code)
    say_weights(fine_tuned.weights)
    done = fine_tuned.export(format, out, quantize=quantize, data=data, allow_code=allow_code)
    console = make_console()
    for each in done.inputs:
        shape = ", ".join("any" if size is None else str(size) for size in each["shape"])
        console.print(f"input `{each['name']}`: {each['meaning']}; {each['dtype']}, ({shape})", markup=False)
    for sentence in done.outside:
        console.print(f"not in the export: {sentence}", markup=False)
    for module in done.imports:
        console.print(f"a program that opens it has to `import {module}` before", markup=False, highlight=False)
    for name, scores in done.scores.items():
        figures = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
        console.print(f"test rows by the {name}: {figures}", markup=False, highlight=False)
    console.print(
        f"largest difference from the run: {done.difference:.2g}, on {done.rows} {done.compared_on}, in a new process",
        markup=False,
        highlight=False,
    )
    console.print(f"written: {done.file}", markup=False, highlight=False)
