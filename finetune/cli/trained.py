"""The commands on a run that has trained: `evaluate` and `predict`."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.application import AllowCode, app, examples, make_console, start_command
from finetune.errors import printable

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]

Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Weights of an unfinished run: best (with `train.keep: best`), last, or a file in its checkpoints.",
        show_default="those of the end",
    ),
]


def say_weights(weights: str) -> None:
    """Says which weights a model has, on standard error, where they are not those of the end of its run."""
    if weights:
        make_console(stderr=True).print(f"the weights {printable(weights)}", markup=False, highlight=False)


@app.command(
    short_help="Evaluate a run on its test or new rows.",
    epilog=examples(
        "finetune evaluate runs/pets",
        "finetune evaluate runs/pets --data new-photos/",
        "finetune evaluate runs/reviews --data new.csv --metrics f1_score,auc --json",
    ),
)
def evaluate(
    run: Run,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Rows with targets: a table, a folder of class folders, or an .npz file.",
            show_default="the data of the run",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows of the run's own data: test, validation or train.")] = "test",
    metrics: Annotated[
        list[str],
        typer.Option(help="Metrics as Keras names them, such as `f1_score,auc`.", show_default="those of the recipe"),
    ] = [],  # noqa: B006 - typer reads the default
    checkpoint: Checkpoint = None,
    allow_code: AllowCode = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Evaluate the model of a run on its test rows, or on data that it has never seen."""
    from finetune.inference.record import open_record

    open_record(run, checkpoint)  # before TensorFlow starts, which takes seconds
    start_command()
    from finetune.commands.evaluate import print_evaluation
    from finetune.inference.fine_tuned import load

    fine_tuned = load(run, checkpoint=checkpoint, allow_code=allow_code)
    say_weights(fine_tuned.weights)
    result = fine_tuned.evaluate(data, split=split, metrics=metrics, allow_code=allow_code)
    if json:
        print(dumps(asdict(result), indent=2, ensure_ascii=False))
        return
    print_evaluation(result, make_console())


@app.command(
    short_help="Write the answers for raw rows.",
    epilog=examples(
        "finetune predict runs/pets cat.jpg more-photos/",
        "finetune predict runs/wine new.csv --out answers.csv",
        "echo 'a lovely film' | finetune predict runs/reviews -",
    ),
)
def predict(
    run: Run,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, sounds, folders of them, tables, .npz or .npy files; `-` reads standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="standard output")] = None,
    format: Annotated[
        str | None, typer.Option(help="jsonl or csv.", show_default="by the ending of --out, or jsonl")
    ] = None,
    top: Annotated[int, typer.Option("--top-k", min=1, help="How many classes are listed.")] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Probability from which a row has a label.", show_default="what the run chose, or 0.5"
        ),
    ] = None,
    on_error: Annotated[str, typer.Option(help="`stop` at a row that cannot be read, or `skip` it.")] = "stop",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows that the model takes at once.", show_default="32 files, or 512 rows of a table"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
    checkpoint: Checkpoint = None,
    allow_code: AllowCode = [],  # noqa: B006 - typer reads the default
) -> None:
    """Write what the model of a run says of raw rows: a line of JSON or CSV for each, in their order."""
    from finetune.inference.record import check_prediction, open_record

    open_record(run, checkpoint)  # before TensorFlow starts, which takes seconds
    check_prediction(inputs, out, format, on_error, overwrite=overwrite)
    start_command()
    from finetune.commands.predict import predict as predict_rows

    predict_rows(
        run,
        inputs,
        out=out,
        format=format,
        top=top,
        threshold=threshold,
        on_error=on_error,
        batch_size=batch_size,
        checkpoint=checkpoint,
        allow_code=allow_code,
        console=make_console(stderr=True),
    )
