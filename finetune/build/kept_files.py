"""Keeps in the run folder what the inputs of its model are made with: the tokenizer, and the names of the classes.

A run folder that is copied to another machine then works there, where the files that the recipe names do not exist.
"""

import shutil
from pathlib import Path

from finetune.recipe.loader import resolve_path, resolve_place
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import DATA_FOLDER, PRESET_FOLDER, replacing

# What KerasHub makes a preprocessor of; a preset also holds its weights, which are in `model.keras`.
_OF_PRESET = ("config.json", "metadata.json", "preprocessor.json", "tokenizer.json", "assets")


def keep_files(recipe: Recipe, folder: Path) -> None:
    """Copies the files that a recipe names for its inputs and classes into `data/` of the run folder.

    A preset by a handle is not copied, as KerasHub finds it everywhere.

    Args:
        recipe: The recipe.
        folder: The run folder.

    Raises:
        WriteError: A file cannot be written.
    """
    source = recipe.data
    named = [source.tokenizer.file if source.tokenizer else None, source.class_names_file]
    for path in (resolve_path(recipe, name) for name in named if name):
        _copy(path, folder / DATA_FOLDER / path.name)
    preset = Path(resolve_place(recipe, recipe.model.preset)) if recipe.model.preset else None
    if preset is None or not (preset / "tokenizer.json").is_file():
        return
    for name in _OF_PRESET:
        paths = (preset / name).rglob("*") if (preset / name).is_dir() else [preset / name]
        for path in paths:
            _copy(path, folder / DATA_FOLDER / PRESET_FOLDER / path.relative_to(preset))


def _copy(path: Path, to: Path) -> None:
    if path.is_file():
        with replacing(to) as temporary:
            shutil.copyfile(path, temporary)
