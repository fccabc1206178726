"""A run that has come to its end: what is said of it, and whether it is to go on changed. Needs no TensorFlow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError, counted, reason
from finetune.plain_shapes import ANY, COUNT, fault
from finetune.recipe.changes import Change, changes_of_text
from finetune.recipe.data import TEST_SHARE
from finetune.recipe.loader import dump_recipe, load_recipe, with_values
from finetune.recipe.moved_files import moved_keys
from finetune.recipe.schema import Recipe
from finetune.results.run_documents import fault_in_run, read_recipe_of_run
from finetune.training.checkpoints.checkpoint_file import read_newest
from finetune.training.checkpoints.content import REMOVE

# What the recipe in the folder of an older run says otherwise and means the same (`recipe.loader`): key, was, now.
_OF_OLDER_RUNS = (("train.kernels", "nothing", "exact"), ("data.split.test", TEST_SHARE, "nothing"))
# Keys of `train` that decide what is written, or hold for a later change alone, and not what is trained.
FREE = (
    "format",
    *(
        f"train.{key}"
        for key in (
            "checkpoint_seconds",
            "checkpoint_steps",
            "checkpoint_optimizer",
            "keep_checkpoints",
            "log_every_steps",
            "evaluate_before",
            "extend",
            "trackers",
        )
    ),
)


_RECORD = {
    **dict.fromkeys(("number", "epochs", "steps", "parameters", "frozen_tensors"), COUNT),
    "epochs_left": int,
    "train": [str],
    "frozen_changed": [str],
    "seconds": float,
    "keras_loop?": (str, None),
    "frozen_unchanged": bool,
    "": None,
}
# What a run notes in each checkpoint beside the state of the training.
_NOTED = {
    "recipe": str,
    "resolved?": str,
    "epochs?": COUNT,
    "cooldown_at?": (COUNT, None),
    "plan_of_phases?": [[[str], (COUNT, None), (COUNT, None), COUNT]],
    "extensions?": [{str: ANY}],
    "contents?": {str: str},
    "recalibrate": bool,
    "data": dict,
    "metrics_before": {str: float},
    "checksums_before": {str: str},
    "seconds": {str: float},
    "records?": [_RECORD],
    "proof?": {"records": [{"stretch": str, "tensors": COUNT, "changed": [str], "": None}], "_last": {str: str}},
    "seeds?": [[COUNT]],
}


def check_noted(document: Mapping[str, Any], path: Path | None) -> None:
    """Checks what a run has noted in a checkpoint.

    Args:
        document: The notes.
        path: The checkpoint.

    Raises:
        FinetuneError: They are not as a run writes them.
    """
    if "recipe" not in document:
        raise FinetuneError(f"`{path}` was not written by a run. Go on with the program that wrote it.")
    wrong = fault(document, _NOTED) or fault_in_run("data.json", document["data"])
    for key in ("recipe", "resolved"):
        try:
            if not wrong and not isinstance(yaml.safe_load(document.get(key) or "{}"), dict):
                wrong = f"`{key}` is no recipe"
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            wrong = f"`{key}` is no recipe: {reason(error)}"
    if wrong:
        raise FinetuneError(f"A checkpoint holds what the run has noted. `{path}` does not: {wrong}. {REMOVE}")


def none_is_whole(folder: Path, damaged: Mapping[Path, str]) -> str:
    """Returns what is said of a run whose checkpoints are all damaged.

    Args:
        folder: The run folder.
        damaged: Each with what is wrong with it.
    """
    path, why = next(iter(damaged.items()))
    return (
        f"A run goes on from a checkpoint that is whole. Of {counted(len(damaged), 'checkpoint')} in "
        f"`{folder / 'checkpoints'}` none is: `{path}` is damaged ({why}). Bring one back from a copy, remove them to "
        "begin anew, or begin another run with the weights so far: `--set "
        f"restore.from={folder / 'checkpoints' / 'last.weights.h5'}`."
    )


def changes_since(document: Mapping[str, Any], given: Recipe, *, of_run: bool) -> list[Change]:
    """Returns what differs in a recipe from that which a run was trained with so far, and decides what is trained.

    A file that lies in another place, and has the content that it had, does not differ.

    Args:
        document: What the run has noted in its checkpoint.
        given: The recipe.
        of_run: Whether it is the recipe in the run folder, perhaps with overrides.
    """
    changes = _differences(document, given, of_run=of_run)
    free = [*FREE, *(".".join(keys) for keys in moved_since(document, given, of_run=of_run))]
    return [change for change in changes if not any(f"{change.key}.".startswith(f"{key}.") for key in free)]


def moved_since(document: Mapping[str, Any], given: Recipe, *, of_run: bool) -> list[tuple[str, ...]]:
    """Returns the keys of a recipe that name another place for a file that has the content that it had.

    Args:
        document: As for `changes_since`, and so on.
        given: The same.
        of_run: The same.
    """
    return moved_keys(given, _differences(document, given, of_run=of_run), document.get("contents", {}))


def _differences(document: Mapping[str, Any], given: Recipe, *, of_run: bool) -> list[Change]:
    # The recipe in a run folder is the resolved one, with losses and measured rates in place of `auto`.
    before = document.get("resolved") if of_run else document["recipe"]
    if before is None:  # of an older version, which could not go on changed
        return []
    given = as_begun(given, document)
    changes = changes_of_text(before, dump_recipe(given, absolute_paths=True))
    return [change for change in changes if (change.key, change.was, change.now) not in _OF_OLDER_RUNS]


def as_begun(given: Recipe, document: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with the kernels of an older run, which had no others, where it does not name any.

    Args:
        given: The recipe.
        document: What the run has noted in its checkpoint.
    """
    is_older = "kernels" not in (yaml.safe_load(document["recipe"]).get("train") or {})
    if is_older and "kernels" not in given.train.model_fields_set:
        return with_values(given, {("train", "kernels"): "exact"})
    return given


def has_changed(folder: Path, recipe: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a finished run is to go on with another recipe than its own; answers without TensorFlow.

    Args:
        folder: The run folder.
        recipe: The file of the recipe.
        overrides: Changes to it.
    """
    path, saved, damaged = read_newest(folder / "checkpoints")
    document = saved.document["more"] if saved else {}
    if damaged and not saved and overrides:
        raise FinetuneError(none_is_whole(folder, damaged))
    if saved:
        check_noted(document, path)
    of_run = recipe.resolve() == (folder / "recipe.yaml").resolve()
    given = load_recipe(recipe, overrides=overrides)
    return "recipe" in document and bool(changes_since(document, given, of_run=of_run))


def _longer(folder: Path) -> str:
    if isinstance(read_recipe_of_run(folder / "recipe.yaml").get("phases"), list):
        return "--set 'phases=[...]'`, with longer or more phases"
    return "--set train.epochs=...`"


def finished(folder: Path) -> str:
    """Returns what is said of a run that is finished."""
    kept = read_newest(folder / "checkpoints")[0]
    longer = (
        f"To train it for longer: `finetune resume {folder} {_longer(folder)}"
        if kept
        else "It kept no checkpoint to be extended from (`train.keep_checkpoints`); another run can begin with its "
        f"weights: `--set restore.from={folder / 'model.keras'}`"
    )
    return (
        f"the run in `{folder}` is finished, and is not trained again. Its model is `{folder / 'model.keras'}`, "
        f"and its figures are in `result.json`. {longer}. To train anew, choose another folder, or use `--overwrite`"
    )
