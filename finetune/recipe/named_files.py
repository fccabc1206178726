"""Files that a recipe names: which they are, and whether they are there, before anything slow begins."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from finetune.errors import did_you_mean, quote
from finetune.files.checkpoint_prefixes import prefixes_in, without_index
from finetune.files.fetchable import FETCHABLE, fetching_command
from finetune.recipe.loader import place_of, resolve_path, resolve_place
from finetune.recipe.schema import PATH_FIELDS, Recipe

_FILES = ("keras_file", "npz", "verify", "class_names_file", "file")
_FOLDERS = ("images", "cache")
_PLACES = ("weights", "preset", "hub")  # a path, or the handle of something that is downloaded
_MADE = ("cache",)  # a folder that a run makes


def missing_files(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each path of a recipe where there is nothing of the right kind.

    A path with `*`, `?` or `[` may be a pattern and is left to the reader of the data; so are handles and addresses.
    """
    written = [(keys, text) for keys in PATH_FIELDS for _, text in _texts(_value(recipe, keys))]
    for keys, text in written:
        path = _local_path(recipe, keys[-1], text)
        problem = path and _problem(keys[-1], path)
        if problem and path and problem.startswith("does not exist"):
            command = fetching_command(path)
            problem += f" `{command}` fetches it." if command else _elsewhere(recipe, keys, path)
        if problem:
            place = place_of(recipe, *keys)
            yield f"{place}: `{'.'.join(keys)}` {problem}" if place else f"`{'.'.join(keys)}` {problem}"


def files_of(recipe: Recipe) -> set[Path]:
    """Returns the files that a recipe names: in a folder, of a pattern, and with the prefix of a checkpoint, too.

    Args:
        recipe: The recipe. Its cache, which runs write, is left out.
    """
    return {path for keys in PATH_FIELDS for *_, files in files_of_key(recipe, keys) for path in files}


def files_of_key(recipe: Recipe, keys: tuple[str, ...]) -> list[tuple[str, Path, list[Path]]]:
    """Returns the key, the path and the files of each value that a key of a recipe has; nothing of a cache.

    Args:
        recipe: The recipe.
        keys: Those that lead to a path, one of `PATH_FIELDS`.
    """
    files = []
    for name, text in () if keys[-1] in _MADE else sorted(_texts(_value(recipe, keys))):
        path = Path(resolve_place(recipe, text) if keys[0] == "model" else resolve_path(recipe, text))
        found = [path, *path.rglob("*")] if path.is_dir() else [path]
        if not path.exists() and path.is_absolute():  # a name of Keras or of a hub is relative
            found = map(Path, [*glob(str(path), recursive=True), *glob(f"{escape(str(path))}.*")])
        files.append((name, path, [each for each in found if each.is_file()]))
    return files


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _texts(item, f"{name}.{key}")


def _value(recipe: Recipe, keys: tuple[str, ...]) -> Any:
    value: Any = recipe
    for key in keys:
        fields = type(value).model_fields if value is not None else {}
        # `from` is a word of Python, so its field has another name.
        name = next((name for name, field in fields.items() if (field.alias or name) == key), None)
        value = getattr(value, name, None) if name else None
    return value


def _local_path(recipe: Recipe, key: str, text: str) -> Path | None:
    if any(character in text for character in "*?["):
        return None
    if key not in _PLACES or text in FETCHABLE:  # what is fetched is no handle
        return resolve_path(recipe, text)
    place = resolve_place(recipe, text)
    # `google/bert/1` may be a handle: only what is spelled as a path is one for sure.
    return Path(place) if text.startswith(("/", "./", "../", "~")) or (key == "weights" and "/" in place) else None


def _problem(key: str, path: Path) -> str:
    try:
        is_file, is_folder, exists = path.is_file(), path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError) as error:  # too long, a null character, no permission
        return f"cannot be a path: {error}."
    if exists and not is_file and not is_folder:
        what = "a link to nothing" if path.is_symlink() and not path.exists() else "a pipe, a socket or a device"
        return f"names a file or folder. `{path}` is {what}."
    if key in _FILES and is_folder:
        return f"names a file. `{path}` is a folder{_content(path)}."
    if key in _FOLDERS and is_file:
        return f"names a folder. `{path}` is a file."
    if key in _MADE and (is_folder or not exists):
        return ""
    # The prefix of a checkpoint is no file itself.
    if exists or Path(f"{path}.index").is_file():
        return f"cannot be read: no permission for `{path}`." if exists and not os.access(path, os.R_OK) else ""
    folder = next(parent for parent in path.parents if parent.is_dir())  # the root at last
    if folder != path.parent:
        return f"does not exist: `{path}`. The nearest folder that exists is `{folder}`."
    if key == "from" and (lone := without_index(path)):
        return f"names no complete checkpoint: `{path}`. {lone}"
    prefixes = prefixes_in(folder) if key == "from" else []
    # `model.ckpt` for `model.ckpt-300`: the step is a part of the prefix.
    steps = [int(number[1]) for name in prefixes if (number := re.fullmatch(rf"{re.escape(path.name)}-(\d+)", name))]
    if steps:
        there = quote(f"{path.name}-{step}" for step in sorted(steps, reverse=True))
        return f"does not exist: `{path}`. The names of the checkpoints there end in their steps: {there}."
    alike = [*prefixes, *(name for name in _names(folder) if Path(name).suffix == path.suffix)]
    if "\\" in path.name:  # a path of Windows is a single name elsewhere
        return f"does not exist: `{path}`. Folders are written with `/`."
    return f"does not exist: `{path}`.{did_you_mean(path.name, alike) or _has(folder, path.suffix)}"


def _elsewhere(recipe: Recipe, keys: Sequence[str], path: Path) -> str:
    """Returns a sentence where what is missing lies near the recipe, as after a run and its data were moved."""
    here = resolve_path(recipe, "")
    near = [folder / path.name for folder in (here, *here.parents[:2])]
    there = next((each for each in near if each.exists()), None)
    return f" There is `{there}`, if it was moved: `--set {'.'.join(keys)}={there}`." if there else ""


def _names(folder: Path, suffix: str = "") -> list[str]:
    """Returns the names in a folder; those that end like the name that is looked for come first."""
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK | os.X_OK) else []
    return sorted(names, key=lambda name: bool(suffix) and Path(name).suffix != suffix)


def _content(folder: Path) -> str:
    names = _names(folder)
    return f" that holds {quote(names)}" if names else " that is empty"


def _has(folder: Path, suffix: str) -> str:
    names = _names(folder, suffix)
    return f" `{folder}` holds {quote(names)}." if names else f" `{folder}` is empty."
