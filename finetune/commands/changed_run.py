"""A run that goes on with a changed recipe: what may change, what is carried, and what is kept of the run before.

Whatever is trained may change: the length, groups, optimizers, rates, phases to come, batch size, data. The network,
and the phases that are over, may not.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.errors import FinetuneError, counted
from finetune.recipe.changes import Change, changes_of
from finetune.recipe.loader import with_values
from finetune.recipe.schema import Recipe
from finetune.results.run_documents import read_of_run, read_rows_of_run
from finetune.results.run_folder import write_json
from finetune.training.checkpoints.carried_state import CarriedPart
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import BEFORE_COOLDOWN, checkpoint_files, steps_of
from finetune.training.checkpoints.class_columns import class_changes
from finetune.training.phases.phase import Phase

_REFUSED = {
    r"model\b(?!\.head\.classes|\.arguments)": "the network is another, and a run goes on with the weights of its own",
    r"restore\b": "the weights are those of the run, and nothing is restored",
}
_SHOWN = 5  # differences in a message
_KEPT = (
    "result.json",
    "recipe.yaml",
    "plan.txt",
    "plan.json",
    "metrics.csv",
    "steps.csv",
    "data.json",
    "data",
    "model.keras",
    "plots",
)
_OF_TARGETS = r"data\b|train\.(loss|validation_fraction)\b"  # what decides which figures can be compared
_OF_BATCHES = r"data\b|seed$|train\.(batch_size|shuffle|validation_fraction)$"  # what decides which rows are in a batch
OTHER_ROWS = Change("data", "as it was read", "other rows in the same place (`--other-data`)")


def check_changes(folder: Path, changes: Sequence[Change], recipe: Recipe, document: Mapping[str, Any]) -> None:
    """Checks that a run can go on with the changes to its recipe, as far as shows without the network.

    Args:
        folder: The run folder.
        changes: The changes.
        recipe: The changed recipe.
        document: What the run has noted in its checkpoint.

    Raises:
        FinetuneError: It cannot.
    """
    for change in changes:
        why = next((why for pattern, why in _REFUSED.items() if re.match(pattern, change.key)), "")
        if why and change.key in document.get("contents", ()):
            why = "the file there has another content than that with which the run was begun"
        if why:
            raise FinetuneError(
                f"A run goes on with the network it was begun with. In `{folder}` and in the recipe differ: {change}: "
                f"{why}. Undo the change, or begin another run in another folder, with `restore.from: "
                f"{folder / 'model.keras'}`."
            )
    if recipe.train.learning_rate:
        raise FinetuneError(
            "A run that goes on changed has its rates. The recipe says `train.learning_rate: "
            f"{recipe.train.learning_rate}`, which chooses them. Change the recipe of the run, which holds those that "
            f"were chosen: `finetune resume {folder} --set ...`."
        )
    if "plan_of_phases" not in document:
        raise FinetuneError(
            f"The checkpoint in `{folder}` was written by an older version, and goes on only unchanged. Undo the "
            f"changes: {'; '.join(map(str, changes[:5]))}."
        )


def with_extension(recipe: Recipe, document: Mapping[str, Any], *, steps: int) -> Recipe:
    """Notes in a recipe that the run is extended now, where its schedules are not simply those of the new length.

    Args:
        recipe: The changed recipe.
        document: What the run has noted.
        steps: Steps that are made.
    """
    before = [dict(extension) for extension in document["extensions"]]
    now = [extension.model_dump() for extension in recipe.train.extensions]
    if now != before:  # it was noted before the process was killed
        return recipe
    if recipe.train.extend == "stretch":
        return with_values(recipe, {("train", "extensions"): None}) if now else recipe
    total = sum(steps for _, _, _, steps in document["plan_of_phases"])
    if recipe.train.epochs == document["epochs"] or not steps:
        return recipe  # other keys have changed
    extension = {"by": recipe.train.extend, "at_steps": steps, "total_steps": total}
    return with_values(recipe, {("train", "extensions"): [*before, extension]})


def checkpoint_before_cooldown(checkpoint: Checkpoint, recipe: Recipe) -> Path | None:
    """Returns the file from which a run goes on whose rates have begun to fall, and which is to be longer now.

    Args:
        checkpoint: Of the run before.
        recipe: The changed recipe.

    Returns:
        The last file before the fall; `None` where the run goes on from its newest.
    """
    document, phases = checkpoint.resumed.document, recipe.phases if isinstance(recipe.phases, tuple) else ()
    epochs = recipe.train.epochs or sum(phase.epochs or 0 for phase in phases)
    start = document.get("cooldown_at")
    if recipe.train.extend != "stretch" or start is None or epochs <= document["epochs"]:
        return None
    kept = [path for path in checkpoint_files(checkpoint.folder / BEFORE_COOLDOWN) if steps_of(path) <= start]
    return kept[0] if kept and checkpoint.resumed.steps > start else None


def plan_of_phases(phases: Sequence[Phase], groups: Sequence[Any], steps_per_epoch: int) -> list[list[Any]]:
    """Returns what each phase trains, its epochs or steps, and the steps that it lasts, as a checkpoint holds it.

    Args:
        phases: The phases.
        groups: All layer groups.
        steps_per_epoch: Batches in an epoch.
    """
    return [[list(p.names(groups)), p.epochs, p.steps, p.steps or (p.epochs or 0) * steps_per_epoch] for p in phases]


def fit_in(
    checkpoint: Checkpoint, plan: Sequence[Sequence[Any]], changes: Sequence[Change], data: Mapping[str, Any]
) -> list[str]:
    """Lets a checkpoint go on with changed phases and data.

    Args:
        checkpoint: Of the run before.
        plan: What `plan_of_phases` returns of the run now.
        changes: What has changed.
        data: What `data.json` says of the examples now.

    Returns:
        Sentences on what the change of the data means.

    Raises:
        FinetuneError: The phases that are over have changed, the present one is to end before what is made of it,
            nothing is left to train, or the inputs mean something else.
    """
    before, place = [list(phase) for phase in checkpoint.resumed.document["plan_of_phases"]], checkpoint.position
    present = checkpoint.resumed.phase
    number, now = present["number"], [list(phase) for phase in plan]
    if number > min(len(now), len(before)) or [p[:3] for p in before[: number - 1]] != [
        p[:3] for p in now[: number - 1]
    ]:
        raise FinetuneError(
            f"Phases that are over stay as they were. The run stands in phase {number} of {len(before)}, and the "
            "phases before it, or their number, have changed. Undo that, or begin another run in another folder."
        )
    made = place.epoch - present["epoch"] + (place.step > 0)
    _, epochs, steps, _ = now[number - 1]
    _, former_epochs, former_steps, _ = before[number - 1]
    name = "the run" if len(now) == 1 else f"phase {number}"
    if (epochs is not None and epochs < made) or (steps is None) != (former_steps is None):
        raise FinetuneError(
            f"{name[0].upper()}{name[1:]} cannot end before what is made of it: {made} epochs, and the recipe says "
            f"{f'{epochs} epochs' if epochs else f'{steps} steps'}. Set a larger number."
        )
    until = any(re.search(r"\b(until|time_limit_seconds)\b", change.key) for change in changes)
    is_longer = (epochs or 0) > (former_epochs or 0) or (steps or 0) > (former_steps or 0) or until
    is_over = place.ended or place.stopped
    if is_over and steps and is_longer:
        raise FinetuneError(
            f"A phase whose length is in steps cannot be made longer once it is over, as {name} is. Add a phase "
            "behind it (`--set 'phases=[..., {train: all, steps: ...}]'`), or begin another run in another folder."
        )
    if is_over and not is_longer and number == len(now):
        raise FinetuneError(
            f"Nothing is left to train: {name} has ended after {made} epochs. Set more, as by `--set "
            f"train.epochs={2 * (epochs or made)}`."
        )
    begins_epoch = any(re.match(_OF_BATCHES, change.key) for change in changes)
    former_data = checkpoint.resumed.document["data"]
    classes = class_changes(former_data, data)
    forgotten = checkpoint.resumed.change(
        goes_beyond=is_over and is_longer,
        begins_epoch=begins_epoch,
        classes=classes,
        forgets_best=has_other_targets(changes),
    )
    sentences = [*map(str, classes), *_read_otherwise(former_data, data)]
    if forgotten:
        sentences.append("the best value so far begins anew, since it is of other rows or another loss")
    return sentences


def advice_on_split(recipe: Recipe, changes: Sequence[Change]) -> list[str]:
    """Returns a sentence where rows that were trained on may test from now on.

    Args:
        recipe: The changed recipe.
        changes: What has changed.
    """
    split = recipe.data.split
    if split is None or (split.column and not split.by):
        return []
    keys = r"seed$|data\.split\b" if split.by == "hash" else r"seed$|data\b(?!\.(augment|class_|sample_weight|keep))"
    changed = next((change.key for change in changes if re.match(keys, change.key)), "")
    advice = (
        f"warning: `{changed}` has changed, so the rows are split anew, and rows that were trained on may test or "
        "validate now: the figures may be too good. Split `by: hash`, or name files of their own for test rows"
    )
    return [advice] if changed else []


def has_other_targets(changes: Sequence[Change]) -> bool:
    """Whether losses and metrics are of other rows, or of another loss, than those before the changes."""
    return any(re.match(_OF_TARGETS, change.key) for change in changes)


def _read_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what was fitted to the data and is another now.

    Raises:
        FinetuneError: A place in an input means another category.
    """
    changes = changes_of(before.get("source", {}), now.get("source", {}))
    places = [change for change in changes if re.search(r"\bcategories\.\d+$", change.key)]
    if places:
        raise FinetuneError(
            "A run goes on with the network it was begun with, in which each category has its place. The data have "
            f"others: {'; '.join(map(str, places[:_SHOWN]))}. Bring the rows of these categories back, or begin "
            "another run in another folder."
        )
    fitted = [change for change in changes if re.search(r"\.(mean|variance)$", change.key)]
    more = f", and {len(fitted) - _SHOWN} more" if len(fitted) > _SHOWN else ""
    said = "; ".join(map(_said_of_number, fitted[:_SHOWN]))
    return [f"numbers are normalized by the rows that are read now: {said}{more}"] if fitted else []


def _said_of_number(change: Change) -> str:
    """Returns the column, and what was fitted to it, to four digits."""
    _, _, column = change.key.removeprefix("inputs.").partition(".")
    values = [f"{value:.4g}" if isinstance(value, float) else value for value in (change.was, change.now)]
    return f"`{column}`: was {values[0]}, is {values[1]}"


def check_network(folder: Path, carried: Sequence[CarriedPart], changes: Sequence[Change]) -> None:
    """Checks that other arguments of the network have changed the columns of classes alone.

    Args:
        folder: The run folder.
        carried: What became of the state.
        changes: What has changed in the recipe.

    Raises:
        FinetuneError: Other weights have changed, too.
    """
    changed = next((change for change in changes if change.key.startswith("model.arguments")), None)
    lost = [part for part in carried if part.name == "weights" and part.state != "carried"]
    if changed and lost:
        raise FinetuneError(
            "A run goes on with the network it was begun with, in which only the classes may be others. With "
            f"{changed}, {lost[0].tensors} tensors are {lost[0].why}. Undo the change, or begin another run in another "
            f"folder, with `restore.from: {folder / 'model.keras'}`."
        )


def keep_former(folder: Path) -> str:
    """Keeps what a finished run has left, before it goes on, in the next free folder below `former`.

    Returns:
        The folder, relative to that of the run.
    """
    number = 1
    while (folder / "former" / str(number)).exists():
        number += 1
    kept = folder / "former" / str(number)
    writing = folder / ".writing-former"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    for name in _KEPT:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, writing / name)
        elif (folder / name).is_file():
            _link(folder / name, writing / name)
    kept.parent.mkdir(exist_ok=True)
    writing.rename(kept)
    (folder / "hashes.json").unlink(missing_ok=True)  # from here on files change
    return f"former/{number}"


def former_ends(folder: Path) -> tuple[dict[str, Any], ...]:
    """Returns the folder, the epochs and the metrics of each end that a run had before it went on."""
    ends = []
    kept = [path for path in (folder / "former").glob("*") if path.name.isdigit()]
    for path in sorted(kept, key=lambda path: int(path.name)):
        epochs = len(read_rows_of_run(path / "metrics.csv"))
        metrics = read_of_run(path / "result.json").get("metrics", {})
        ends.append({"folder": f"former/{path.name}", "epochs": epochs, "metrics": metrics})
    return tuple(ends)


def _link(source: Path, target: Path) -> None:
    # Files are replaced, never written into, so a second name keeps the content and takes no room.
    with suppress(OSError):
        target.hardlink_to(source)
        return
    shutil.copy2(source, target)


def report_carried(
    folder: Path,
    carried: Sequence[CarriedPart],
    changes: Sequence[Change],
    former: str,
    console: Console,
    *,
    data: Sequence[str] = (),
) -> None:
    """Prints what has changed and what became of the state, and writes `migration.json`.

    Args:
        folder: The run folder.
        carried: What became of the state.
        changes: What has changed in the recipe.
        former: Where the result so far is kept, in the run folder; empty where there was none.
        console: Where to print.
        data: Sentences on what the change of the data means.
    """
    for change in changes:
        console.print(f"changed: {change}", highlight=False, markup=False)
    for sentence in data:
        console.print(sentence, highlight=False, markup=False)
    for part in carried:
        why = f" ({part.why})" if part.why else ""
        tensors = counted(part.tensors, "tensor")
        console.print(f"{part.state}: {tensors} of {part.name}{why}", highlight=False, markup=False)
    if former:
        console.print(f"the result so far is kept in {folder / former}", highlight=False, markup=False)
    written = {
        "changes": [{"key": change.key, "was": change.was, "now": change.now} for change in changes],
        "data": list(data),
        "state": [part.to_json() for part in carried],
    }
    write_json(folder / "migration.json", written)
