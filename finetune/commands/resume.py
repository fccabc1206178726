"""`finetune resume`: a run that was stopped or killed goes on where its newest checkpoint is, bit for bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError
from finetune.recipe.loader import dump_recipe
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import is_finished, is_run, only_files_of_a_run
from finetune.training.checkpoints.checkpoint import Checkpoint

# Keys of `train` that decide what is written, not what is trained.
_FREE = (
    "train.checkpoint_seconds",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.evaluate_before",
)
_SHOWN = 5  # differences in a message


@dataclass(frozen=True)
class FormerRun:
    """A run folder that holds a checkpoint to go on from.

    Attributes:
        recipe: The file of its recipe.
        checkpoint: Its checkpoint.
        document: What the run has noted beside the state of the training.
    """

    recipe: Path
    checkpoint: Checkpoint
    document: Mapping[str, Any]


def find_former_run(folder: Path, given: Recipe | None) -> FormerRun | None:
    """Returns the run in a folder that can go on; `None` where there is none, or it has no checkpoint yet.

    Args:
        folder: The run folder.
        given: The recipe with which the run is to go on; `None` for its own.

    Raises:
        FinetuneError: The run is finished, the folder holds something else, or the recipe is another.
    """
    if is_finished(folder):
        raise FinetuneError(finished(folder))
    if not is_run(folder):
        if folder.is_dir() and not only_files_of_a_run(folder):
            raise FinetuneError(
                f"A run goes on in its run folder. `{folder}` holds other files and no run. Name the folder that the "
                "run has printed."
            )
        return None
    checkpoint = Checkpoint(folder / "checkpoints")
    if not checkpoint.goes_on:
        return None
    document = checkpoint.document
    if "recipe" not in document:
        raise FinetuneError(f"`{checkpoint.path}` was not written by a run. Go on with the program that wrote it.")
    if given is not None and (changes := _changes(document["recipe"], dump_recipe(given, absolute_paths=True))):
        more = f", and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise FinetuneError(
            f"A run goes on with the recipe it was begun with. In `{folder}` and in the recipe that was given differ: "
            f"{'; '.join(changes[:_SHOWN])}{more}. Undo the change, go on with `finetune resume {folder}`, or begin "
            "another run in another folder."
        )
    return FormerRun(folder / "recipe.yaml", checkpoint, document)


def finished(folder: Path) -> str:
    """Returns what is said of a run that is finished."""
    return (
        f"the run in `{folder}` is finished, and is not trained again. Its model is `{folder / 'model.keras'}`, "
        "and its figures are in `result.json`. To train anew, choose another folder, or use `--overwrite`"
    )


def check_same_data(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that the examples are those that the run was begun with, as far as `data.json` tells.

    Args:
        folder: The run folder.
        before: What the run has noted of its examples.
        now: The same of the examples that are read now.

    Raises:
        FinetuneError: They are not.
    """
    changes = _differences(before, now)
    if changes:
        raise FinetuneError(
            f"A run goes on with the data it was begun with. What is read now differs from `{folder / 'data.json'}`: "
            f"{'; '.join(changes[:_SHOWN])}. Bring the data back, or begin another run in another folder."
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


def _changes(before: str, now: str) -> list[str]:
    old, new = (dict(_flat(yaml.safe_load(text))) for text in (before, now))
    return [change for key, change in _pairs(old, new) if key not in _FREE]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [change for _, change in _pairs(dict(_flat(before)), dict(_flat(now)))]


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    nothing = "nothing"
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key, nothing) != new.get(key, nothing)]
    return [(key, f"`{key}`: was {old.get(key, nothing)}, is {new.get(key, nothing)}") for key in keys]


def _flat(data: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns the values of nested mappings and lists by their dotted keys."""
    if isinstance(data, Mapping):
        items: Sequence[tuple[Any, Any]] = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    else:
        return [(prefix, data)]
    return [pair for key, value in items for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
