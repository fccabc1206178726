"""Which content the files of a recipe have: a run goes on as it was begun where its files lie in another place now."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from finetune.recipe.changes import Change
from finetune.recipe.loader import dump_recipe, with_values
from finetune.recipe.named_files import files_of_key
from finetune.recipe.schema import PATH_FIELDS, Recipe

_MOST_BYTES = 2**28  # read of the files of a key; of more, parts of each
_MOST_FILES = 1000  # read; of more, names and sizes count
_PARTS = 16  # read of a large file, evenly spaced


def contents(recipe: Recipe) -> dict[str, str]:
    """Returns a digest of the files that each key of a recipe names, by the keys with points between them.

    The names of several files count, and of large files parts: it takes under a second.

    Args:
        recipe: The recipe.
    """
    digests = {}
    for keys in PATH_FIELDS:
        files = files_of_key(recipe, keys)
        if any(of for *_, of in files):
            digests[".".join(keys)] = _digest(files)
    return digests


def moved_keys(recipe: Recipe, changes: Sequence[Change], before: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Returns the keys of files that lie in another place than before, and have the content that they had.

    Args:
        recipe: The recipe now.
        changes: What differs in it.
        before: What `contents` returned of the recipe before.
    """
    changed = [keys for keys in PATH_FIELDS if any(f"{each.key}.".startswith(f"{'.'.join(keys)}.") for each in changes)]
    return [keys for keys in changed if before.get(".".join(keys)) == _digest(files_of_key(recipe, keys))]


def with_paths_of(recipe: Recipe, other: Recipe, moved: Sequence[tuple[str, ...]]) -> Recipe:
    """Returns a recipe with the paths that another has at some keys.

    Args:
        recipe: The recipe.
        other: The other.
        moved: The keys.
    """
    written = yaml.safe_load(dump_recipe(other, absolute_paths=True))
    return with_values(recipe, {keys: reduce(getitem, keys, written) for keys in moved}) if moved else recipe


def _digest(files: Sequence[tuple[str, Path, Sequence[Path]]]) -> str:
    every = [path for *_, of in files for path in of]
    digest = hashlib.sha256()
    for key, place, of in files:
        for path in sorted(of):
            # What the recipe names may have another name now, what lies in it may not.
            name = path.relative_to(place) if place.is_dir() else path.name if len(of) > 1 else ""
            digest.update(f"{key}\0{name}\0{path.stat().st_size}\0".encode())
            if len(every) <= _MOST_FILES:
                _read(path, _MOST_BYTES // len(every), digest)
    return digest.hexdigest()


def _read(path: Path, most: int, digest: Any) -> None:
    size, part = path.stat().st_size, most // _PARTS
    with path.open("rb") as file:
        if size <= most:
            hashlib.file_digest(file, lambda: digest)
            return
        for number in range(_PARTS):
            file.seek((size - part) * number // (_PARTS - 1))
            digest.update(file.read(part))
