"""Which weights a run ends with, and which checkpoints it leaves: `train.keep`, `average` and `keep_checkpoints`."""

from typing import Any

import keras
from rich.console import Console

from finetune.build.data import build_rows
from finetune.build.layout import Layout
from finetune.recipe.train import Train
from finetune.results.formatting import size_text
from finetune.training.averaged_weights import CollectWeights, greedy_average
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import BEFORE_COOLDOWN, checkpoint_files
from finetune.training.keep_best import KeepBest
from finetune.training.recalibrate import recalibrate as recalibrate_statistics
from finetune.training.rehearsal import EVALUATED_ROWS


def best_keeper(settings: Train) -> KeepBest | None:
    """Returns the callback that remembers the best weights, where `train.keep` asks for them."""
    if settings.keep == "last":
        return None
    until = settings.until
    return KeepBest(until.monitor, until.min_delta, until.mode) if until else KeepBest("val_loss")


def collector(settings: Train) -> CollectWeights | None:
    """Returns the callback that remembers the weights that `train.average` asks for."""
    asked, until = settings.average, settings.until
    if asked is None:
        return None
    monitor, mode = "val_loss", "auto"
    if until is not None and until.monitor.startswith("val_"):
        monitor, mode = until.monitor, until.mode
    return CollectWeights(asked.best or asked.last or 0, monitor, mode, newest=asked.last is not None)


def average(layout: Layout, collect: CollectWeights) -> dict[str, Any]:
    """Gives the model the mean of collected weights if it is better; returns what was done."""
    validation, model = layout.examples.validation, layout.model
    assert validation is not None  # as the recipe was checked
    name, rows = collect.monitor.removeprefix("val_"), build_rows(layout.recipe, layout.examples)
    return greedy_average(
        model,
        collect,
        lambda: float(model.evaluate(validation.batches(EVALUATED_ROWS), verbose=0, return_dict=True)[name]),
        lambda: recalibrate_statistics(model, layout.groups, rows),
    )


def keep_checkpoints(
    checkpoint: Checkpoint, settings: Train, model: keras.Model, weights: LastWeights, console: Console
) -> None:
    """Removes the checkpoints of a run that is over but for those that are to stay, and says how large these are.

    Args:
        checkpoint: What has written them.
        settings: `train` of the recipe.
        model: The model, with the weights of the end.
        weights: Has written the file of the latest weights, which then need not hold the optimizer's state.
        console: Where to print.
    """
    # With averaged weights the last but one has those from which a longer training goes on.
    kept = {True: 2, False: 0, "last": 2 if settings.use_ema else 1}[settings.keep_checkpoints]
    checkpoint.remove(keep=kept)
    sizes = [
        sum(path.stat().st_size for path in checkpoint_files(folder))
        for folder in (checkpoint.folder, checkpoint.folder / BEFORE_COOLDOWN)
    ]
    if sizes[0]:
        weights.drop_optimizer(model)  # its state is in the checkpoint
        part = f", {size_text(sizes[1])} of it from before the rates fell" if sizes[1] else ""
        console.print(
            f"kept to train for longer: {size_text(sum(sizes))} in {checkpoint.folder}{part} "
            "(`train.keep_checkpoints: false` removes it)",
            highlight=False,
            markup=False,
        )
