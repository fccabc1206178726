"""`finetune check`: is a recipe valid? Without `--deep` it answers without loading TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.sequences import one_or_more

if TYPE_CHECKING:
    from rich.console import Console


def check(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shows_graphs: bool = False,
) -> None:
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

    Raises:
        RecipeError: The recipe breaks a rule. All problems of a kind are in one message.
        FinetuneError: A run cannot be written to `out`.
    """
    # Before pydantic is imported: its search for plugins takes a tenth of the time of this command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from finetune.errors import RecipeError
    from finetune.recipe.builder_source import builder_problems
    from finetune.recipe.code_consent import check_graph_allowed
    from finetune.recipe.keras_names import unknown_names
    from finetune.recipe.loader import load_recipe
    from finetune.recipe.named_files import missing_files

    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    problems = [*builder_problems(loaded), *missing_files(loaded), *unknown_names(loaded)]
    if problems:
        raise RecipeError("\n".join(problems))
    if not shows_graphs:
        check_graph_allowed(loaded, one_or_more(allow_code))
    if out is not None:
        from finetune.results.run_folder import check_run_folder

        check_run_folder(out, overwrite=overwrite, resume=resume)


def check_deep(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: "Console",
) -> list[str]:
    """Builds the model of a recipe, restores its weights, and reads every row of its data.

    Args:
        recipe: Path of the recipe.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to print the progress.

    Returns:
        A sentence for each kind of problem with the data.

    Raises:
        FinetuneError: A run of the recipe would fail before it trains.
    """
    from finetune.build.data import precision
    from finetune.build.layout import build_layout
    from finetune.data.examples import SPLITS, summary
    from finetune.data.row_checks import problems_of
    from finetune.recipe.loader import load_recipe
    from finetune.training.callbacks import progress_bar

    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    with precision(loaded):
        layout = build_layout(loaded)
    console.print(f"data: {summary(layout.examples)}", markup=False)
    total = sum(len(split) for name in SPLITS if (split := getattr(layout.examples, name)))
    done = 0
    with progress_bar(console, "reading rows") as show:

        def on_rows(count: int) -> None:
            nonlocal done
            done += count
            show(done, total)

        problems, ranges = problems_of(layout.examples, on_rows)
    for name, (low, high) in ranges.items():
        console.print(f"inputs{f' `{name}`' if name else ''}: {low:.6g} to {high:.6g}", markup=False)
    return problems + _misfits(layout.model, loaded.model.application, layout.examples.source, ranges)


def _misfits(model: Any, application: str | None, source: Any, ranges: dict[str, tuple[float, float]]) -> list[str]:
    """Compares the values of the inputs with what the network takes."""
    import keras

    from finetune.keras_private import sublayers

    problems, (low, high) = [], next(iter(ranges.values()), (0.0, 255.0))
    if application and high <= 2:
        problems.append(
            f"`{application}` takes pixels from 0 to 255, since its preprocessing is inside the model. The inputs are "
            f"{low:.3g} to {high:.3g}. Do not scale them"
        )
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
