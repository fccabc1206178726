"""The figures of a fine-tuned model on the rows of its run, or on data that it has never seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from finetune.build.compile import compile_model
from finetune.build.data import build_examples, precision
from finetune.build.objectives import with_chosen_losses
from finetune.build.padding import with_padding
from finetune.data.examples import SPLITS, Examples, Split, make_examples
from finetune.data.row_checks import unreadable_rows_named
from finetune.errors import DataError, FinetuneError, quote
from finetune.inference.fine_tuned import FineTuned
from finetune.inference.labelled_rows import labelled_examples, refusal_told
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.results.report.output_facts import facts_of
from finetune.training.class_results import results_of_classes
from finetune.training.intervals import intervals_of_metrics
from finetune.training.predictions import predict_test_rows, rows_of_outputs
from finetune.training.rehearsal import EVALUATED_ROWS
from finetune.training.try_examples import explained, try_model

_OF_CLASSES = ("f1_score", "fbeta_score", "F1Score", "FBetaScore")


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on some rows.

    Attributes:
        rows: How many there are.
        data: What they are: a split of the run's data, or the place that was named.
        metrics: Loss and metrics by name.
        intervals: The 95 % interval of each over other rows that might have been drawn (`training/intervals.py`); empty
            where rows are too few, or the loss needs more than targets and outputs.
        classes: Rows, recall and precision of each class by its name, for each output by its name.
        outputs: Confusion, calibration and what else the report has of each output by its name: see `facts_of`.
    """

    rows: int
    data: str
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    classes: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


def evaluate_on(
    fine_tuned: FineTuned,
    data: str | Path | None = None,
    *,
    split: str = "test",
    metrics: Sequence[str] = (),
    allow_code: Sequence[str] = (),
) -> Evaluation:
    """Evaluates the model of a run; see `FineTuned.evaluate`.

    Args:
        fine_tuned: The run.
        data: A table, a folder of class folders or an `.npz` file with targets; by default the data of the recipe.
        split: `test`, `validation` or `train`: which rows of the run's own data.
        metrics: Names of metrics as Keras has them; by default those of the recipe. They are for each output.
        allow_code: Code that the recipe names and that may run.

    Raises:
        FinetuneError: The data of the run have changed or are gone, or rows do not fit the model.
    """
    record, model = fine_tuned.record, fine_tuned.model
    recipe = load_recipe(
        record.folder / "recipe.yaml", overrides=_overrides(fine_tuned, metrics), allow_code=allow_code
    )
    refused: list[DataError] = []
    with precision(recipe), refusal_told(refused):
        examples = _own_examples(recipe, model, split) if data is None else labelled_examples(fine_tuned, data, refused)
        with unreadable_rows_named(examples), explained(DataError, "The model must be able to evaluate the rows.", ""):
            trial = try_model(model, examples)
            compile_model(recipe, model, keras.optimizers.SGD(), examples, trial)
            compiled: Any = model
            figures = compiled.evaluate(examples.test.batches(EVALUATED_ROWS), verbose=0, return_dict=True)
            predictions = predict_test_rows(model, examples, EVALUATED_ROWS)
            classes = results_of_classes(model, examples, predictions)
            outputs = {name: facts_of(rows) for name, rows in rows_of_outputs(model, examples, predictions).items()}
            intervals = intervals_of_metrics(model, predictions, seed=recipe.seed)
    by_name = {name: float(figures[name]) for name in sorted(figures, key=lambda name: name != "loss")}
    place = str(data) if data is not None else split
    return Evaluation(len(examples.test), place, by_name, intervals, classes, outputs)


def _overrides(fine_tuned: FineTuned, metrics: Sequence[str]) -> list[str]:
    """Returns the change to the recipe that makes these its metrics."""
    names = [name.strip() for each in metrics for name in each.split(",") if name.strip()]
    if not names:
        return []
    outputs = [each.name for each in fine_tuned.record.outputs]
    # A metric of a run is a single number, and these are one for each class otherwise.
    listed = ", ".join(f"{{name: {name}, average: macro}}" if name in _OF_CLASSES else name for name in names)
    listed = f"[{listed}]"
    if outputs == [""]:
        return [f"train.metrics={listed}"]
    return [f"train.metrics={{{', '.join(f'{name}: {listed}' for name in outputs)}}}"]


def own_examples(fine_tuned: FineTuned, split: str, *, allow_code: Sequence[str] = ()) -> Examples:
    """Returns the rows of the run's own data, those of a split as its test rows.

    Args:
        fine_tuned: The run.
        split: `test`, `validation` or `train`.
        allow_code: Code that the recipe names and that may run.

    Raises:
        FinetuneError: The data are gone, or do not fit the model.
    """
    recipe = load_recipe(fine_tuned.record.folder / "recipe.yaml", allow_code=allow_code)
    return _own_examples(recipe, fine_tuned.model, split)


def _own_examples(recipe: Recipe, model: keras.Model, split: str) -> Examples:
    """Returns the rows of the run's own data, those of a split as its test rows."""
    if split not in SPLITS:
        raise FinetuneError(f"A split is one of {quote(SPLITS)}. Received: `{split}`.")
    try:
        examples = with_chosen_losses(recipe, model, build_examples(recipe, model)).examples
    except FinetuneError as error:
        # A run folder does not hold the rows of its recipe.
        raise FinetuneError(f"{error} Other rows can be named with `--data`.") from error
    examples, _ = with_padding(recipe, model, examples)
    chosen: Split | None = getattr(examples, split)
    if chosen is None:
        raise FinetuneError("The data of this run have no validation rows. Evaluate `test` or `train`.")
    about: Any = {"class_names": examples.class_names, "source": examples.source}
    about["places"] = {"test": examples.places[split]} if split in examples.places else {}
    return make_examples(examples.train, chosen, **about)
