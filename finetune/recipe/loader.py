"""Reads a recipe file into a `Recipe`, and writes it back."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.data import TEST_SHARE
from finetune.recipe.extends import read_tree
from finetune.recipe.fields import RecipePath
from finetune.recipe.messages import problems_of
from finetune.recipe.schema import PATH_FIELDS, Recipe
from finetune.recipe.text import Node, Place, Problem, dump, parse
from finetune.recipe.yaml_tree import follow, report, tree_of, with_value
from finetune.sequences import one_or_more

# Code that a recipe may name without permission: it only makes networks and data sets. The other modules of Keras are
# not on the list, since e.g. `keras.saving.load_model` runs code from the file that it loads.
TRUSTED = ("finetune.examples", "keras.applications", "keras.datasets")

_YAML_MARKS = ",|>*&%@`#-?:;"  # with which a text may begin that is not what YAML makes of it; no brackets and quotes


def load_recipe(path: str | Path, *, overrides: Sequence[str] = (), allow_code: Sequence[str] | None = None) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: The YAML file.
        overrides: Changes such as `"groups.head.learning_rate=1e-3"`, applied in order. Relative paths in them are
            relative to the working directory.
        allow_code: What the recipe may run, see `check_code_allowed` and `finetune.recipe.code_consent`; `None` does
            not check that. Give a list, if empty, wherever the recipe is going to be run.

    Returns:
        The recipe, after `extends` and overrides were applied.

    Raises:
        RecipeError: Everything that is wrong, each problem with file, line and column.
    """
    problems: list[Problem] = []
    tree = read_tree(Path(path), problems, (*Recipe.model_fields, *Recipe.keys_read_before))
    if tree is None:
        raise report(problems)
    for override in (*_keys_of_older_run(Path(path), tree), *one_or_more(overrides)):
        tree = _overridden(tree, override, problems)
    try:
        # Problems of text, overrides and schema are reported together; a faulty override is skipped above.
        recipe = Recipe.model_validate(_with_folders(tree))
    except ValidationError as error:
        raise report([*problems, *problems_of(error, tree)]) from None
    # A recipe may satisfy the schema although its text has problems, e.g. a key that was used twice.
    if problems:
        raise report(problems)
    recipe._tree = tree
    recipe._allowed_code = None if allow_code is None else tuple(one_or_more(allow_code))
    # Last, because only a valid recipe says for sure which code it names.
    if allow_code is not None:
        check_code_allowed(recipe, one_or_more(allow_code))
    return recipe


def with_values(recipe: Recipe, values: Mapping[tuple[str | int, ...], Any]) -> Recipe:
    """Returns a loaded recipe with other values at some places; `values` maps the keys that lead there to the value."""
    # The tree is changed too, not only the values, so that `place_of` and later changes start from the new values.
    tree: Node = recipe._tree
    for keys, value in values.items():
        tree = with_value(tree, keys, tree_of(value, follow(tree, keys)[0].place))
    changed = Recipe.model_validate(_with_folders(tree))
    changed._tree = tree
    changed._allowed_code = recipe.allowed_code
    return changed


def _keys_of_older_run(path: Path, tree: Node) -> Iterator[str]:
    """Yields what the recipe in the folder of an older run says otherwise, or not at all."""
    if path.name != "recipe.yaml" or not (path.parent / "plan.txt").is_file():
        return
    if len(follow(tree, ("train", "kernels"))[1]) == 2:  # they were not to be chosen then
        yield "train.kernels=exact"
    split = follow(tree, ("data", "split"))[0].plain()
    # The default was written out, though it was not used beside a column that says which rows test.
    if isinstance(split, dict) and split.get("column") and not split.get("by") and split.get("test") == TEST_SHARE:
        yield "data.split.test="


def _overridden(tree: Node, override: str, problems: list[Problem]) -> Node:
    path, equals, text = override.partition("=")
    keys, place = path.strip().split("."), Place(f"--set {path.strip()}", folder=Path.cwd())
    if not equals or "" in keys:
        problems.append(Problem(place, f"must read `path.to.key=value`. Received: `{override}`."))
        return tree
    if keys[0] == "extends":
        problems.append(Problem(place, "`extends` is for files and cannot be set. Write it into the recipe."))
        return tree
    # `a.b=` without a value means null, which removes the key.
    value = _value_of(text.strip(), place, problems)
    try:
        return with_value(tree, keys, value) if value else tree
    except RecipeError as error:
        problems.append(Problem(place, str(error)))
        return tree


def _value_of(text: str, place: Place, problems: list[Problem]) -> Node | None:
    """Returns the value of an option: YAML, or the text itself where it is a mark of YAML, as `,`, or begins with one.

    So `data.delimiter=,` and `data.tfrecord=*.tfrecord` need no quotes within those of the shell.
    """
    if not text:
        return Node(None, place)
    if re.fullmatch(r"-?\d*:-?\d*(:\d*)?", text):  # a slice, of which YAML would take `40:` for a mapping
        return Node(text, place)
    faults: list[Problem] = []
    value = None if len(text) == 1 and text in _YAML_MARKS else parse(text, lambda line, column: place, faults)
    if (value is None or faults) and text[0] in _YAML_MARKS:
        return Node(text, place)
    problems += faults
    return value


def _with_folders(tree: Node) -> dict[str, Any]:
    data = tree.plain()
    for keys in PATH_FIELDS:
        node, passed, _ = follow(tree, keys)
        # The root, the sections and the value: the path was written. What is no text is left to the schema.
        if len(passed) == len(keys) + 1:
            _section(data, keys)[keys[-1]] = _with_folder(node)
    return data


def _with_folder(node: Node) -> Any:
    """Returns a value with every text in it as a path that knows the folder of its file."""
    if isinstance(node.value, dict):
        return {key: _with_folder(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_with_folder(child) for child in node.value]
    return RecipePath(node.value, node.place.folder) if isinstance(node.value, str) else node.plain()


def dump_recipe(recipe: Recipe, *, absolute_paths: bool = False) -> str:
    """Writes a recipe as YAML that loads as the same recipe.

    Args:
        recipe: The recipe.
        absolute_paths: Write paths in full, so that the text loads from any folder.
    """
    data = recipe.model_dump(by_alias=True)
    for keys in PATH_FIELDS:
        section = _section(data, keys)
        path = section.get(keys[-1])
        if path is not None:
            # Values of `model` may also be a preset or an address, which have no absolute form.
            resolve = resolve_place if keys[0] == "model" else resolve_path
            section[keys[-1]] = _plain(
                path, (lambda each, of=resolve: str(of(recipe, each))) if absolute_paths else str
            )
    return dump(data)


def _plain(paths: Any, written: Callable[[Any], Any]) -> Any:
    """Returns paths, which may be those of each split, as text; files that are still to be split have no name."""
    if isinstance(paths, Mapping):
        plain = {name: _plain(each, written) for name, each in paths.items()}
        return plain[""] if list(plain) == [""] else plain
    return [_plain(each, written) for each in paths] if isinstance(paths, list | tuple) else str(written(paths))


def _section(data: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Returns the mapping that holds the last of some keys; an empty one where it was not written."""
    for key in keys[:-1]:
        data = data.get(key) or {}
    return data


def resolve_path(recipe: Recipe, path: str) -> Path:
    """Returns the absolute path for a path in a recipe.

    A path is relative to the file that contains it, which may be a file that the recipe extends. Other text counts as
    relative to the file of the recipe; for overrides, and without a file, that is the working directory.
    """
    # Each path keeps the folder of its own file (`RecipePath`); other text falls back to the folder of the recipe.
    folder = getattr(path, "folder", None) or (recipe._tree and recipe._tree.place.folder)
    return Path(folder or ".").absolute() / Path(path).expanduser()


def resolve_place(recipe: Recipe, text: str) -> str:
    """Returns a value that may be a path or something else; a path becomes absolute.

    Something else is an address (`https://...`), `none`, `imagenet`, or a name without `/` of which there is no file.
    """
    path = resolve_path(recipe, text)
    is_name = re.fullmatch(r"[\w-]+", text) is not None and not path.exists()
    return str(text) if is_name or "://" in text else str(path)


def place_of(recipe: Recipe, *keys: str | int) -> str:
    """Returns where a key's value was written, e.g. `recipes/pets.yaml:14:9`.

    Args:
        recipe: The recipe.
        keys: The keys that lead to the value, e.g. `"groups", 1, "prefixes"`. If they lead further than what was
            written, the place of the last value that was written.

    Returns:
        The place, or an empty string for a recipe that was not loaded from a file.
    """
    return str(follow(recipe._tree, keys)[0].place) if recipe._tree else ""


@contextmanager
def placed(recipe: Recipe, *keys: str | int, only: type[FinetuneError] = FinetuneError) -> Iterator[None]:
    """Puts the place of a key in front of an error in the block, unless the error has a place already.

    Args:
        recipe: The recipe.
        keys: The keys that lead to the value, e.g. `"model", "head"`.
        only: The errors that get this place; others pass.

    Raises:
        RecipeError: For a `FinetuneError` in the block.
    """
    try:
        yield
    except RecipeError:
        raise
    except only as error:
        place, path = place_of(recipe, *keys), ".".join(map(str, keys))
        raise RecipeError(f"{place}: `{path}`: {error}" if place else str(error)) from error


# -- Code -------------------------------------------------------------------------------------------------------------


def check_code_allowed(recipe: Recipe, allowed: Sequence[str]) -> None:
    """Checks that a recipe runs only code of finetune, networks and data sets of Keras, and what the user allowed.

    Args:
        recipe: The recipe.
        allowed: Packages or modules, dotted; each allows what is below it, too.

    Raises:
        RecipeError: A builder names other code.
    """
    refused = []
    for key, builder, module in _untrusted(recipe):
        if not _below(module, allowed):
            place = place_of(recipe, *key.split("."))
            begin = f"{place}: " if place else ""
            refused.append(
                f"{begin}`{key}: {builder}` names code that is not part of finetune, and a recipe may come from "
                f"anywhere. Run with `--allow-code {module.split('.')[0]}` if you trust it."
            )
    if refused:
        raise RecipeError("\n".join(refused))


def _untrusted(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    for key, builder in (("model.builder", recipe.model.builder), ("data.builder", recipe.data.builder)):
        module = builder.split(":")[0] if builder else ""
        if builder and not _below(module, TRUSTED):
            yield key, builder, module


def _below(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
