"""`finetune resume`: a run that was stopped or killed goes on where its newest checkpoint is, bit for bit.

One whose recipe has changed since, as by `--set train.epochs=40`, goes on changed: `finetune.commands.changed_run`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isabs
from pathlib import Path
from typing import Any

import yaml

from finetune.commands.changed_run import OTHER_ROWS, check_changes, checkpoint_before_cooldown, with_extension
from finetune.commands.finished_run import (
    as_begun,
    changes_since,
    check_noted,
    finished,
    moved_since,
    none_is_whole,
)
from finetune.errors import FinetuneError
from finetune.recipe.changes import Change, changes_of
from finetune.recipe.loader import dump_recipe, load_recipe, with_values
from finetune.recipe.moved_files import with_paths_of
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import is_finished, is_run, only_files_of_a_run
from finetune.training.checkpoints.checkpoint import Checkpoint

_SHOWN = 5  # differences in a message
_SAID = re.compile(r"source\.(target\.(.+\.)?reason|(.+\.)?warnings\.\d+)")  # about the data, which stay the same


@dataclass(frozen=True)
class FormerRun:
    """A run folder that holds a checkpoint to go on from.

    Attributes:
        recipe: The recipe to go on with.
        written: Its text, as it is compared the next time.
        checkpoint: Its checkpoint.
        document: What the run has noted beside the state of the training.
        changes: What differs from the recipe that it was trained with so far.
        is_finished: Whether the run had come to its end.
        goes_back: Whether the checkpoint is that before the rates fell, and not the newest.
        moved: The keys of files that lie in another place now, and have the content that they had.
    """

    recipe: Recipe
    written: str
    checkpoint: Checkpoint
    document: Mapping[str, Any]
    changes: tuple[Change, ...]
    is_finished: bool
    goes_back: bool = False
    moved: Sequence[str] = ()


def find_former_run(folder: Path, given: Recipe, *, of_run: bool = False, other_data: bool = False) -> FormerRun | None:
    """Returns the run in a folder that can go on; `None` where there is none, or it has no checkpoint yet.

    Args:
        folder: The run folder.
        given: The recipe with which the run is to go on.
        of_run: Whether this is the recipe in the folder, perhaps with overrides, in which measured rates are written.
        other_data: Whether the data may have changed in the place that the recipe names.

    Raises:
        FinetuneError: The run is finished and nothing has changed, the folder holds something else, or the recipe has
            changed in a way in which a run cannot go on.
    """
    finished_before = is_finished(folder)
    if not is_run(folder):
        if folder.is_dir() and not only_files_of_a_run(folder):
            raise FinetuneError(
                f"A run goes on in its run folder. `{folder}` holds other files and no run. Name the folder that the "
                "run has printed."
            )
        return None
    checkpoint = Checkpoint(folder / "checkpoints")
    if not checkpoint.goes_on:
        if checkpoint.damaged:
            raise FinetuneError(none_is_whole(folder, checkpoint.damaged))
        if finished_before:
            raise FinetuneError(finished(folder))
        return None
    document = checkpoint.resumed.document
    check_noted(document, checkpoint.path)
    given = as_begun(given, document)
    changes = [*changes_since(document, given, of_run=of_run), *([OTHER_ROWS] if other_data else [])]
    moved = moved_since(document, given, of_run=of_run)
    names = [".".join(keys) for keys in moved]
    if finished_before and not changes:
        raise FinetuneError(finished(folder))
    if not changes:
        # As it was written there: rates that were measured are in it.
        recipe = load_recipe(folder / "recipe.yaml", allow_code=given.allowed_code)
        recipe = with_paths_of(recipe, given, moved)
        return FormerRun(recipe, document["recipe"], checkpoint, document, (), is_finished=False, moved=names)
    check_changes(folder, changes, given, document)
    kept = checkpoint_before_cooldown(checkpoint, given)
    goes_back = kept is not None and checkpoint.resumed.go_back(kept)
    document = checkpoint.resumed.document
    recipe = with_extension(given, document, steps=checkpoint.resumed.steps)
    written = dump_recipe(recipe, absolute_paths=True)
    for key in ("batch_size", "mixed_precision"):
        if getattr(recipe.train, key) == "auto" and not any(change.key == f"train.{key}" for change in changes):
            measured = yaml.safe_load(document["resolved"])["train"].get(key, False)
            recipe = with_values(recipe, {("train", key): measured})
    return FormerRun(recipe, written, checkpoint, document, tuple(changes), finished_before, goes_back, names)


def check_same_data(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, moved: Sequence[str] = ()
) -> None:
    """Checks that the examples are those that the run was begun with, as far as `data.json` tells.

    Args:
        folder: The run folder.
        before: What the run has noted of its examples.
        now: The same of the examples that are read now.
        moved: The keys of files that lie in another place now: paths may differ then.

    Raises:
        FinetuneError: They are not.
    """
    # The recipe in the folder names the loss that was chosen, so that nothing is left to say why it was; and another
    # version may warn of other things.
    changes = [change for change in changes_of(before, now) if not _SAID.fullmatch(change.key)]
    if any(key.startswith("data.") for key in moved):
        changes = [change for change in changes if not all(isabs(str(path)) for path in (change.was, change.now))]
    if changes:
        raise FinetuneError(
            f"A run goes on with the data it was begun with. What is read now differs from `{folder / 'data.json'}`: "
            f"{'; '.join(map(str, changes[:_SHOWN]))}. Bring the data back, go on with those that are there now "
            f"(`finetune resume {folder} --other-data`), or begin another run in another folder."
        )


def check_same_start(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Checks that the frozen tensors, as the recipe builds and restores them, are those that the run was begun with.

    Args:
        folder: The run folder.
        before: The checksum of each, which the run has noted.
        now: The checksums now, before the checkpoint is restored.

    Raises:
        FinetuneError: They are not.
    """
    changed = [name for name in before if before[name] != now.get(name)]
    if changed:
        raise FinetuneError(
            f"A run goes on with the network it was begun with. {len(changed)} of {len(before)} frozen tensors are "
            f"others now, such as `{changed[0]}`: the file of `restore` or the code of the network has changed since "
            f"`{folder}` was begun. Bring it back, or begin another run in another folder."
        )
