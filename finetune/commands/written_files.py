"""The files of a run folder that a run writes beside its logs: before training, of the model, and its curves."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from finetune.build.kept_files import keep_files
from finetune.build.layout import Layout
from finetune.build.source_keys import loss_names
from finetune.commands.env import environment
from finetune.data.leaks import leaked_rows, warning_of_leaks
from finetune.data.target_facts import describe
from finetune.errors import MachineError, TrainingError, WriteError
from finetune.recipe.loader import dump_recipe
from finetune.results.plots import plot_training
from finetune.results.run_folder import write_json, write_text
from finetune.results.tables import plan_text
from finetune.training.callbacks import LastWeights
from finetune.training.phases.records import PhaseRecord
from finetune.training.saving import save_model
from finetune.training.try_examples import explained


def described(layout: Layout) -> dict[str, Any]:
    """Returns what `data.json` says of the examples, as JSON has it."""
    return json.loads(json.dumps(describe(layout.examples, loss_names(layout.recipe))))


def write_plan(folder: Path, layout: Layout, console: Console) -> None:
    """Writes what is known before training: recipe, plan, data, what was restored, environment.

    Args:
        folder: The run folder.
        layout: The layout of the run.
        console: Where to tell of rows that leak.
    """
    leaked = leaked_rows(layout.examples)
    write_json(folder / "data.json", described(layout) | ({"leaked_rows": leaked} if leaked else {}))
    if leaked:
        console.print(warning_of_leaks(leaked, layout.examples), highlight=False, markup=False)
    plan = layout.plan.to_json()
    write_text(folder / "recipe.yaml", dump_recipe(layout.recipe, absolute_paths=True))
    keep_files(layout.recipe, folder)
    write_text(folder / "plan.txt", plan_text(plan))
    write_json(folder / "plan.json", plan)
    write_json(folder / "restore.json", layout.restored.to_json() if layout.restored else None)
    write_json(folder / "environment.json", environment())


def write_model(model: keras.Model, folder: Path, weights: LastWeights) -> tuple[str, ...]:
    """Writes `model.keras`.

    Args:
        model: The fine-tuned model.
        folder: The run folder.
        weights: Keeps the weights where the model cannot be written.

    Returns:
        What plain Keras does not have of the loss and the metrics, as sentences.

    Raises:
        TrainingError: The model cannot be saved as its layers are written.
        WriteError: The file cannot be written.
        MachineError: Memory has run out.
    """
    advice = f"{weights.keep()} Correct the `get_config` of the model or layer to save the whole model."
    rule = "A trained model is saved whole, so that plain Keras can load it."
    try:
        with explained(TrainingError, rule, advice):
            return save_model(model, folder / "model.keras")
    except (WriteError, MachineError) as error:
        raise type(error)(f"{error} {weights.keep()}") from error


def draw_curves(folder: Path, records: Sequence[PhaseRecord]) -> None:
    """Draws loss, metrics and learning rates over the epochs into `plots/training.png` and `.svg`."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    trained = {record.number: record.train for record in records}
    plot_training(rows, trained=trained, path=folder / "plots" / "training")
