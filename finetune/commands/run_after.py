"""What `finetune run` does after the last step: evaluate, save, draw, prove and say what went wrong."""

from math import nan
from pathlib import Path

from finetune.build.data import batch_rows
from finetune.build.layout import Layout
from finetune.commands.changed_run import (
    former_ends,
)
from finetune.commands.run_before import Asked, Before, evaluated
from finetune.commands.run_report import predicted, write_facts
from finetune.commands.run_result import RunResult
from finetune.commands.run_training import Trained
from finetune.commands.stage_clock import StageClock
from finetune.commands.written_files import draw_curves, write_model
from finetune.kernels.native_kernels import NativeLayers
from finetune.recipe.losses import by_output
from finetune.training.callbacks import LastWeights
from finetune.training.class_results import results_of_classes
from finetune.training.divergence import divergence, loss_of_guess
from finetune.training.finite_weights import check_weights
from finetune.training.fit import check_finite
from finetune.training.label_thresholds import label_thresholds
from finetune.training.rehearsal import EVALUATED_ROWS
from finetune.training.reopened import open_again


def finish(
    asked: Asked,
    layout: Layout,
    folder: Path,
    before: Before,
    weights: LastWeights,
    trained: Trained,
    native: NativeLayers,
    clock: StageClock,
) -> RunResult:
    """Evaluates, saves, draws and proves; prints the warnings.

    Args:
        asked: What the caller of `run` asks for.
        layout: The layout of the recipe.
        folder: The run folder.
        before: What is known from before training.
        weights: Saves the last weights.
        trained: What training has left.
        native: Which layers ran native kernels.
        clock: Takes the seconds of each stage.
    """
    model, records = layout.model, trained.records
    check_weights(layout.tree.leaves, layout.groups, "at the end of training")
    with clock("evaluate"):
        metrics = evaluated(layout)
        predictions = predicted(layout, asked.console)
        classes = results_of_classes(model, layout.examples, predictions) if predictions else {}
        thresholds = label_thresholds(model, layout.examples, EVALUATED_ROWS)
        # The loss of a training step is that before its update, so the last update shows only here.
        check_finite(metrics["loss"], "on the test examples after training", folder)
    with clock("save"):
        left_out = write_model(model, folder, weights)
        opened = open_again(folder / "model.keras")
    with clock("plot"):
        draw_curves(folder, records)
    whole_run = before.proof.end("the run", before.frozen, before.checksums)
    with clock("save"):
        not_opened = opened()
    with clock("report"):
        write_facts(folder, layout, predictions, asked.console)
    diverged = divergence(before.metrics.get("loss", nan), metrics["loss"], _loss_of_guess(layout))
    warnings = tuple(filter(None, (not_opened, diverged, *trained.warnings)))
    for warning in warnings:
        asked.console.print(f"warning: {warning}", markup=False)
    for sentence in left_out:
        asked.say(f"model.keras: {sentence}")
    return RunResult(
        folder=folder,
        batch_size=batch_rows(layout.recipe),
        metrics=metrics,
        metrics_before=before.metrics,
        rows_before=before.rows,
        metrics_of_mean=before.metrics_of_mean,
        classes=classes,
        frozen_unchanged=before.proof.holds,
        frozen_tensors=whole_run.tensors,
        not_opened=not_opened,
        left_out=left_out,
        native=native.to_json(model) if layout.recipe.train.kernels == "native" else None,
        keras_loop="; ".join(dict.fromkeys(record.keras_loop for record in records if record.keras_loop)),
        warnings=warnings,
        skipped_steps=trained.skipped_steps,
        seconds=clock.seconds,
        data_wait=trained.data_wait,
        phases=records if layout.shows_phases else (),
        extended_from=former_ends(folder),
        kept=trained.kept,
        averaged=trained.averaged,
        thresholds=thresholds,
        model=model,
    )


def _loss_of_guess(layout: Layout) -> float | None:
    losses, shape = by_output(layout.recipe.train.loss), getattr(layout.model, "output_shape", ())
    is_single = list(losses) == [""] and isinstance(shape, tuple)  # a class of the user's own may not say its shape
    return loss_of_guess(losses[""].name, next(iter(shape[::-1]), None)) if is_single else None
