"""`finetune recipes`: the recipes that come with the package, and copies of them that run where they are."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError, did_you_mean, quote

_INSTALLED = Path(__file__).resolve().parent.parent / "shipped_recipes"  # where the wheel puts the folder `recipes`
_CHECKOUT = Path(__file__).resolve().parent.parent.parent / "recipes"
_PROVENANCE = "README.md"  # where the files of a folder come from, and under which licence


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package.

    Attributes:
        name: Its name, without ending.
        shows: What it shows, the first comment of its file.
        takes: Time and memory, as its file says.
        needs: What it names and does not come with the package, by the names of `finetune fetch`.
    """

    name: str
    shows: str
    takes: str
    needs: tuple[str, ...]


def shipped_folder() -> Path:
    """Returns the folder of the recipes that come with the package.

    Raises:
        FinetuneError: There is none.
    """
    folder = next((each for each in (_INSTALLED, _CHECKOUT) if each.is_dir()), None)
    if folder is None:
        raise FinetuneError(
            f"The recipes come with the package, in `{_INSTALLED}`, and that folder is missing. Install the package "
            "again: `pip install --force-reinstall --no-deps discriminative-finetune`."
        )
    return folder


def shipped_recipes() -> list[ShippedRecipe]:
    """Returns the recipes that come with the package, by name."""
    return [_about(path) for path in sorted(shipped_folder().glob("*.yaml"))]


def copy_recipes(names: Sequence[str], out: Path, *, overwrite: bool = False) -> list[Path]:
    """Copies recipes with the files that they name and extend, and the schema by which editors know their keys.

    Args:
        names: Names of shipped recipes.
        out: The folder to copy into.
        overwrite: Whether files there may be replaced.

    Returns:
        The recipes that were written, in the order of their names.

    Raises:
        FinetuneError: There is no recipe of a name, or a file exists and holds something else.
    """
    from finetune.commands.schema import write_schema_beside
    from finetune.results.new_files import check_new_file
    from finetune.results.run_folder import replacing, write_text

    folder = shipped_folder()
    known = [path.stem for path in sorted(folder.glob("*.yaml"))]
    stems = [name.removesuffix(".yaml").removeprefix("recipes/") for name in names]
    for stem in stems:
        if stem not in known:
            hint = did_you_mean(stem, known) or f" There are {quote(known, limit=20)}."
            raise FinetuneError(f"No recipe of the package is called `{stem}`.{hint}")
    if out.exists() and not out.is_dir():
        raise FinetuneError(f"Recipes are copied into a folder. `--out {out}` is a file. Name a folder.")
    files = sorted({file for stem in stems for file in _files(folder / f"{stem}.yaml", folder)})
    for file in files:
        target = out / file.relative_to(folder)
        if not target.is_file() or file.suffix == ".yaml" or target.read_bytes() != file.read_bytes():
            check_new_file(target, overwrite=overwrite)
    line = write_schema_beside(out)
    for file in files:
        target = out / file.relative_to(folder)
        if file.suffix == ".yaml":
            first = line.replace("$schema=", "$schema=" + "../" * len(file.relative_to(folder).parts[1:]))
            write_text(target, (f"{first}\n" if line else "") + _at_home(file.read_text(encoding="utf-8"), out))
        else:
            with replacing(target) as temporary:
                shutil.copyfile(file, temporary)
    return [out / f"{stem}.yaml" for stem in stems]


def _about(path: Path) -> ShippedRecipe:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    comments = [comment for comment in comments if "$schema=" not in comment]
    takes = next((line.removeprefix("Takes ") for line in comments if line.startswith("Takes ")), "")
    fetched = next((line for line in comments if line.startswith("finetune fetch ")), "")
    needs = re.split(r"\s{2,}", fetched)[0].split()[2:]
    return ShippedRecipe(path.stem, comments[0] if comments else "", takes.rstrip("."), tuple(needs))


def _files(path: Path, folder: Path) -> Iterator[Path]:
    """Yields a recipe, the files that it names and extends as far as they are there, and where these come from."""
    from finetune.files.fetchable import FETCHABLE
    from finetune.recipe.loader import load_recipe
    from finetune.recipe.named_files import files_of

    chain = list(_extended(path))
    yield from chain
    for file in files_of(load_recipe(path)):
        if file.is_relative_to(folder) and file.relative_to(folder).parts[0] not in FETCHABLE:
            yield file
            # The columns of a table may name files, which are in folders beside it.
            beside = [each for each in file.parent.iterdir() if each.is_dir()] if file.suffix == ".csv" else []
            yield from (each for part in beside for each in part.rglob("*") if each.is_file())
            yield from (file.parent / _PROVENANCE,) if (file.parent / _PROVENANCE).is_file() else ()


def _extended(path: Path) -> Iterator[Path]:
    from finetune.recipe.extends import read_text
    from finetune.recipe.text import Place, parse

    yield path
    root = parse(read_text(path), lambda line, column: Place(str(path), line, column), [])
    bases = root.child("extends") if root else None
    for base in [] if bases is None else [bases.plain()] if isinstance(bases.value, str) else bases.plain():
        yield from _extended(path.parent / base)


def _at_home(text: str, out: Path) -> str:
    """Returns the text of a recipe whose comments name it where it lies now."""
    place = f"{out.as_posix()}/" if out != Path() else ""
    return "\n".join(line.replace("recipes/", place) if line.startswith("#") else line for line in text.split("\n"))
