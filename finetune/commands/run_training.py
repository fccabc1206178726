"""The training of a run, with what watches it, and the weights that the recipe asks for at its end."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.build.layout import Layout, fit_options
from finetune.commands.kept_weights import average, best_keeper, collector
from finetune.commands.run_before import Asked, Before
from finetune.commands.several_workers import common_clock
from finetune.commands.stage_clock import StageClock
from finetune.data.row_checks import unreadable_rows_named
from finetune.recipe.error_places import located
from finetune.recipe.loader import dump_recipe
from finetune.training.averaged_weights import said_of
from finetune.training.callbacks import LastWeights
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.data_wait import DataWait, advice_on_wait
from finetune.training.fit import train
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.records import PhaseRecord
from finetune.training.time_limit import TimeLimit
from finetune.training.trackers import Trackers


@dataclass(frozen=True)
class Trained:
    """What training has left beside the weights."""

    records: tuple[PhaseRecord, ...]
    warnings: tuple[str, ...]
    skipped_steps: int | None
    data_wait: float | None
    kept: dict[str, Any] | None
    averaged: dict[str, Any] | None


def trackers_of(asked: Asked, layout: Layout, folder: Path, held: ExitStack) -> Trackers | None:
    """Begins or goes on with the run at the services that the recipe names; they are told how it ends.

    Args:
        asked: What the caller of `run` asks for.
        layout: The layout of the recipe.
        folder: The run folder.
        held: What is ended when the run is over.
    """
    named = layout.recipe.train.trackers
    if not named:
        return None
    config = yaml.safe_load(dump_recipe(layout.recipe, absolute_paths=True))
    projects, with_report = {each.name: each.project for each in named}, [each.name for each in named if each.report]
    return held.enter_context(Trackers(projects, folder, config, with_report=with_report, report=asked.say))


def train_as_planned(
    asked: Asked,
    layout: Layout,
    folder: Path,
    before: Before,
    weights: LastWeights,
    checkpoint: Checkpoint,
    trackers: Trackers | None,
    on_groups: list[str],
    clock: StageClock,
) -> Trained:
    """Trains, and leaves the model with the weights that the recipe asks for: the last, the best, or a mean.

    Args:
        asked: What the caller of `run` asks for.
        layout: The layout of the recipe.
        folder: The run folder.
        before: What is known from before training.
        weights: Saves the last weights.
        checkpoint: Writes the checkpoints.
        trackers: The trackers, if there are any.
        on_groups: Warnings about the groups, which training adds to.
        clock: Takes the seconds of each stage.
    """
    settings, wait = layout.recipe.train, DataWait()
    non_finite = NonFiniteGradients(settings.non_finite, layout.groups) if settings.non_finite else None
    keep_best, collect = best_keeper(settings), collector(settings)
    seconds = settings.time_limit_seconds
    time_limit = TimeLimit(seconds, layout.length.steps, clock=common_clock()) if seconds else None
    with clock("train"), located(layout.recipe, "data"), unreadable_rows_named(layout.examples):
        records = train(
            layout.model,
            layout.groups,
            layout.phases,
            layout.examples,
            fit_options(layout),
            folder=folder,
            console=asked.console,
            proof=before.proof,
            wait=wait,
            weights=weights,
            checkpoint=checkpoint,
            non_finite=non_finite,
            advice=on_groups,
            keepers=[keeper for keeper in (keep_best, collect) if keeper],
            time_limit=time_limit,
            trackers=trackers,
        )
    averaged = None
    if keep_best and (kept_best := keep_best.restore(layout.model)):
        asked.say(kept_best)
    if collect and collect.kept:
        with clock("average"):
            averaged = average(layout, collect)
        asked.say(said_of(averaged))
    if advice := advice_on_wait(wait.share, layout.examples, keeps=layout.recipe.data.keep != "off"):
        asked.say(advice)
    warnings = (non_finite.summary() if non_finite else "", time_limit.summary() if time_limit else "", *on_groups)
    return Trained(
        records=records,
        warnings=warnings,
        skipped_steps=non_finite.skipped if non_finite else None,
        data_wait=None if wait.share is None else round(wait.share, 4),
        kept=keep_best.to_json() if keep_best else None,
        averaged=averaged,
    )
