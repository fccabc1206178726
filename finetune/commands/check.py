"""`finetune check`: is a recipe valid? Without `--deep` it answers without loading TensorFlow."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.sequences import one_or_more

if TYPE_CHECKING:
    from rich.console import Console

    from finetune.build.layout import Layout
    from finetune.training.forecast import RunForecast


@dataclass(frozen=True)
class DeepCheck:
    """What `check_deep` has shown.

    Attributes:
        problems: A sentence for each kind of problem.
        forecast: What a run takes; `None` where it would break off.
    """

    problems: list[str]
    forecast: "RunForecast | None" = None


def check(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shows_graphs: bool = False,
) -> tuple[str, ...]:
    """Reads a recipe and checks whatever shows without TensorFlow; every command that builds a model begins with it.

    These are its spelling and its rules, whether the files that it names are there, whether Keras has its loss and
    metrics, whether its builders exist and take their arguments (their source is read, not run), and whether a run may
    write to `out`.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        out: The run folder; `None` does not check one.
        overwrite: Whether `out` may be a folder that is not empty.
        resume: Whether `out` may be a folder with a run that goes on.
        shows_graphs: Whether the caller goes on and asks for consent itself, with what the graph of a SavedModel has in
            it; TensorFlow is needed for that.

    Returns:
        Sentences on what is decided only when the model is there.

    Raises:
        RecipeError: The recipe breaks a rule. All problems of a kind are in one message.
        FinetuneError: A run cannot be written to `out`.
    """
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.build.table_columns import unknown_columns
    from finetune.errors import RecipeError
    from finetune.recipe.builder_source import builder_problems
    from finetune.recipe.code_consent import check_graph_allowed
    from finetune.recipe.keras_names import unknown_names
    from finetune.recipe.loader import load_recipe
    from finetune.recipe.named_files import missing_files
    from finetune.recipe.tracker_names import tracker_problems

    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    problems = [*builder_problems(loaded), *missing_files(loaded), *unknown_names(loaded), *unknown_columns(loaded)]
    problems += tracker_problems(loaded)
    if problems:
        raise RecipeError("\n".join(problems))
    if not shows_graphs:
        check_graph_allowed(loaded, one_or_more(allow_code))
    if out is not None:
        from finetune.results.run_folder import check_run_folder

        check_run_folder(out, overwrite=overwrite, resume=resume)
    of_size = (
        "`train.batch_size: auto` makes a few steps of several sizes before training, and takes the largest power of "
        "two that fits into memory, up to 1,024 rows and an eighth of the training rows"
    )
    of_precision = (
        "`train.mixed_precision: auto` makes a few steps in float32 and in bfloat16 before training, and takes "
        "bfloat16 where the processor has it, its steps are at least a tenth faster, and their loss is as good"
    )
    return (of_size,) * (loaded.train.batch_size == "auto") + (of_precision,) * (loaded.train.mixed_precision == "auto")


def check_as_data(problems: Sequence[str], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what `check` says as plain data.

    Args:
        problems: Sentences, some with the place in front of them, as messages have it.
        notes: Sentences about what is no problem.
    """
    listed: list[dict[str, Any]] = []
    for line in problems:
        match = re.match(r"(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<message>.*)", line)
        place = {"file": match["file"], "line": int(match["line"]), "column": int(match["column"])} if match else None
        listed.append({"place": place, "message": match["message"] if match else line})
    return {"valid": not listed, "problems": listed, "notes": [f"{note}." for note in notes]}


def check_deep(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: "Console",
) -> "DeepCheck":
    """Rehearses a recipe on a few rows, reads every row of its data, and forecasts what a run takes.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to print the progress.

    Raises:
        FinetuneError: A run of the recipe would fail before it trains.
    """
    from finetune.build.data import precision
    from finetune.build.layout import build_layout, fit_options
    from finetune.build.mixed_precision import with_measured_precision
    from finetune.build.source_keys import loss_names
    from finetune.commands.written_files import draw_curves
    from finetune.data.examples import SPLITS, summary
    from finetune.data.row_checks import problems_of
    from finetune.data.target_facts import describe
    from finetune.recipe.loader import load_recipe
    from finetune.training.callbacks import progress_bar
    from finetune.training.forecast import forecast_run
    from finetune.training.input_checks import input_notes, input_problems, rare_class_problems, target_problems
    from finetune.training.rehearsal import rehearse
    from finetune.training.searched_rates import FACTORS

    begun = time.perf_counter()
    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    loaded, chosen = with_measured_precision(loaded)
    with precision(loaded):
        layout = build_layout(loaded, chosen)
        prepared = time.perf_counter() - begun
        console.print(f"data: {summary(layout.examples)}", markup=False)
        for sentence in (*chosen, *layout.chosen[-1:] * (loaded.train.batch_size == "auto")):
            console.print(sentence, markup=False, highlight=False)
        with console.status("training on a few rows"):
            training = layout.model, layout.groups, layout.phases, layout.examples, fit_options(layout)
            rehearsal = rehearse(*training, finish=draw_curves)
    total = sum(len(split) for name in SPLITS if (split := getattr(layout.examples, name)))
    done, reading = 0, time.perf_counter()
    with progress_bar(console, "reading rows") as show:

        def on_rows(count: int) -> None:
            nonlocal done
            done += count
            show(done, total)

        findings = problems_of(layout.examples, on_rows)
    row_seconds = (time.perf_counter() - reading) / total
    for name, (low, high) in findings.ranges.items():
        console.print(f"inputs{f' `{name}`' if name else ''}: {low:.6g} to {high:.6g}", markup=False)
    for note in input_notes(layout.model, findings.ranges):
        console.print(f"note: {note}", markup=False)
    described = describe(layout.examples, loss_names(layout.recipe))
    problems = [
        *findings.problems,
        *input_problems(layout.model, findings.ranges),
        *target_problems(layout.model, findings.target_ranges),
        *rare_class_problems(described),
        *_misfits(layout.model, layout.examples.source),
    ]
    if rehearsal.problem:  # which another problem explains, if there is one that breaks off training
        explained = target_problems(layout.model, findings.target_ranges) or findings.is_damaged
        return DeepCheck(problems if explained else [*problems, rehearsal.problem])
    searches = len(FACTORS) if layout.rates_to_search else 0
    seconds = {"other_seconds": prepared, "row_seconds": row_seconds}
    forecast = forecast_run(rehearsal, *training[2:], **seconds, searches=searches)
    for line in _forecast_lines(layout, forecast, len(rehearsal.examples.train)):
        console.print(line, markup=False, highlight=False)
    return DeepCheck(problems, forecast)


def _forecast_lines(layout: "Layout", forecast: "RunForecast", rehearsed: int) -> Iterator[str]:
    """Yields what the rehearsal has shown, in sentences."""
    from finetune.commands.rate_search import sentence_of
    from finetune.errors import counted
    from finetune.results.formatting import size_text
    from finetune.training.forecast import duration_text

    yield (
        f"rehearsal: {counted(rehearsed, 'row')} went forward, backward and through the metrics, and the model was "
        "evaluated, saved and opened; its weights are unchanged"
    )
    many = len(forecast.phases) > 1
    for number, phase in enumerate(forecast.phases, start=1):
        low, high = duration_text(phase.least_seconds), duration_text(phase.most_seconds)
        validation = f", {duration_text(phase.validation_seconds)} of it validation" if phase.validation_seconds else ""
        yield (
            f"forecast{f', phase {number}' if many else ''}: an epoch of "
            f"{counted(layout.length.steps_per_epoch, 'step')} takes "
            f"{duration_text(phase.epoch_seconds)} ({low} to {high}){validation}; "
            f"{duration_text(phase.once_seconds)} more in the first"
        )
    if layout.rates_to_search:
        yield sentence_of(layout)
        yield f"forecast: {duration_text(forecast.search_seconds)} for this search"
    without = ", without the LR range test" if layout.rates_to_measure else ""
    without = ", with the search" if layout.rates_to_search else without
    yield (
        f"forecast: {duration_text(forecast.seconds)} for the run{without}, and up to "
        f"{size_text(forecast.memory_bytes)} of memory"
    )


def _misfits(model: Any, source: Any) -> list[str]:
    """Compares what the tokenizers of the data do with what the network takes."""
    import keras

    from finetune.keras_private import sublayers

    problems = []
    embeddings = [layer.input_dim for layer in sublayers(model) if isinstance(layer, keras.layers.Embedding)]
    for about in source.get("inputs", {}).values():
        for column, fitted in about.items() if isinstance(about, dict) else ():
            if not isinstance(fitted, dict) or "vocabulary" not in fitted:
                continue
            if embeddings and fitted["vocabulary"] > max(embeddings):
                problems.append(
                    f"the tokenizer of `{column}` has {fitted['vocabulary']:,} tokens, and the largest embedding of "
                    f"the network {max(embeddings):,}. Use the tokenizer that belongs to the network"
                )
            if fitted["cut"]:
                problems.append(
                    f"`{column}` is longer than {fitted['length']} tokens in {fitted['cut']:,} rows and is cut there"
                )
    return problems
