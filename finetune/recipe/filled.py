"""A recipe with its defaults written out, each with its meaning, and with the comments of its author.

The text is written anew from the tree of the recipe, so the files that it extends are in it. A comment belongs to the
first key of its line, or to the first key below it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.extends import read_text
from finetune.recipe.fields import Part, RecipePath
from finetune.recipe.keys import default_text, meanings, takes_arguments
from finetune.recipe.loader import load_recipe, resolve_path, resolve_place, with_values
from finetune.recipe.optimizers import Named
from finetune.recipe.schema import PATH_FIELDS, Recipe
from finetune.recipe.text import Node, Place, dump
from finetune.recipe.yaml_tree import follow, tree_of, with_value

Keys = tuple[str | int, ...]
_INDENT = "  "
_WIDTH = 120


def filled_text(path: Path, folder: Path) -> str:
    """Returns the text of a recipe in which every default that may be written is written.

    Args:
        path: The recipe.
        folder: Where the text will lie: paths in it are relative to this folder.

    Raises:
        RecipeError: The recipe is not valid.
    """
    recipe = load_recipe(path)
    filled, added = with_defaults(recipe)
    tree = _moved(filled, folder.absolute())
    writer = _Writer(frozenset(added), *_comments_of(path, tree))
    header = [_schema_line(line, path.parent, folder) for line in writer.header]
    return "\n".join([*header, *writer.mapping(filled, tree, (), ""), *writer.end]) + "\n"


def with_defaults(recipe: Recipe) -> tuple[Recipe, list[Keys]]:
    """Returns the same recipe with its defaults in its tree, and the keys that lead to each of them."""
    for keys, part in _names_of_parts(recipe):
        recipe = with_values(recipe, {keys: part.model_dump(by_alias=True)})
    added = []
    for keys, default, other in [*_defaults(recipe, recipe._tree, ())]:
        try:
            # Some keys may not be written beside others even with their default, and some then mean something else.
            changed = with_values(recipe, {keys: default})
            if other is not None:  # a default that nothing else may take the place of says nothing here
                with_values(recipe, {keys: other})
        except (ValidationError, RecipeError):
            continue
        if changed == recipe:
            recipe = changed
            added.append(keys)
    return recipe, added


def _schema_line(line: str, old: Path, new: Path) -> str:
    """Returns a comment; one that names the schema for editors by a relative path, for another folder."""
    match = re.fullmatch(r"(# *yaml-language-server: *\$schema=)([^/:]\S*)", line)
    if not match or "://" in match[2]:
        return line
    return match[1] + Path(os.path.relpath(old / match[2], new)).as_posix()


def _is_filled(value: Any) -> bool:
    return isinstance(value, Part) and not takes_arguments(type(value))


def _parts(value: Any) -> Iterator[tuple[str | int, Part]]:
    """Yields the mappings in a list or a mapping whose keys the schema knows."""
    items: Any = enumerate(value) if isinstance(value, tuple) else value.items() if isinstance(value, Mapping) else ()
    yield from ((key, each) for key, each in items if _is_filled(each))


def _names_of_parts(recipe: Recipe) -> Iterator[tuple[Keys, Part]]:
    """Yields what is written as a name and short for a mapping: `phases: lp_ft`, `report: off`."""
    for name, field in Recipe.model_fields.items():
        value, node = getattr(recipe, name), recipe._tree.child(field.alias or name)
        if _is_filled(value) and node and not isinstance(node.value, dict):
            yield (field.alias or name,), value


def _defaults(part: Any, tree: Node, keys: Keys) -> Iterator[tuple[Keys, Any, Any]]:
    """Yields the keys that are not written and have a default, the default as plain data, and another value if known.

    Args:
        part: A mapping of the recipe.
        tree: The tree of the whole recipe.
        keys: The keys that lead to the mapping.
    """
    for name, field in type(part).model_fields.items():
        value, at = getattr(part, name), (*keys, field.alias or name)
        if _is_filled(value):
            yield from _defaults(value, tree, at)
        for key, each in _parts(value):
            yield from _defaults(each, tree, (*at, key))
        is_written = len(follow(tree, at)[1]) == len(at) + 1
        if default_text(field) not in ("", "required") and not is_written:
            default = field.get_default(call_default_factory=True)
            default = default.name if isinstance(default, Named) else default
            functions = [getattr(each, "func", None) for each in field.metadata]
            known = next(filter(None, (getattr(each, "known", ()) for each in functions)), ())
            known = known or ((True, False) if isinstance(default, bool) else ())
            others = [each for each in known if each != default]
            yield at, list(default) if isinstance(default, tuple) else default, next(iter(others), None)


def _moved(recipe: Recipe, folder: Path) -> Node:
    """Returns the tree of a recipe with its paths relative to a folder."""
    tree: Node = recipe._tree

    def moved(value: Any, of: Path | None, is_place: bool) -> Any:
        if isinstance(value, dict):
            return {key: moved(each, of, is_place) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each, of, is_place) for each in value]
        path = RecipePath(value, of)
        resolved = resolve_place(recipe, path) if is_place else str(resolve_path(recipe, path))
        is_kept = resolved == value or Path(value).expanduser().is_absolute()  # also what is no path, but a handle
        return value if is_kept else os.path.relpath(resolved, folder)

    for keys in PATH_FIELDS:
        node, passed, _ = follow(tree, keys)
        if len(passed) == len(keys) + 1 and node.value is not None and node.place.folder not in (None, folder):
            new = moved(node.plain(), node.place.folder, keys[0] == "model")
            tree = with_value(tree, list(keys), tree_of(new, node.place))
    return tree


@dataclass
class _Writer:
    """Writes a tree as text.

    Attributes:
        added: The keys that lead to the defaults that were added.
        header: Lines above the first key of the file.
        comments: For a file and a line the comments above it and the comment at its end; each is written once.
        end: The comments below the last key of the file.
    """

    added: frozenset[Keys]
    header: list[str]
    comments: dict[tuple[str, int], tuple[list[str], str]]
    end: list[str]

    def mapping(self, part: Any, node: Node, keys: Keys, indent: str) -> Iterator[str]:
        """Yields the lines of a mapping whose keys the schema knows, the defaults last."""
        texts = meanings(type(part))
        names = {field.alias or name: name for name, field in type(part).model_fields.items()}
        first_default = next((key for key in node.value if (*keys, key) in self.added), None)
        for key, child in node.value.items():
            if not indent and key != next(iter(node.value)) and (*keys, key) not in self.added:
                yield ""
            if key == first_default:
                yield from ["", "# by default:"] if not indent else [f"{indent}# by default:"]
            if (*keys, key) in self.added:
                meaning = re.split(r"(?<=\.) ", texts.get(key, texts.get(names[key], "")))[0]
                yield f"{indent}{_lines(key, child.plain())[0]}  # {meaning}"
            else:
                yield from self.entry(key, child, getattr(part, names[key]), keys, indent)

    def entry(self, key: Any, node: Node, value: Any, keys: Keys, indent: str) -> Iterator[str]:
        """Yields the lines of a key and its value, with the comments above and beside it."""
        above, beside = self.taken(node.key_place)
        yield from (f"{indent}{comment}" for comment in above)
        head = f"{indent}{dump({key: None}).removesuffix(': null' + chr(10))}:{beside}"
        at, parts = (*keys, key), dict(_parts(value))
        if _is_filled(value) and isinstance(node.value, dict):
            yield head
            yield from self.mapping(value, node, at, indent + _INDENT)
        elif parts and isinstance(node.value, dict) and {*parts} == {*map(str, node.value)}:
            yield head
            for name, child in node.value.items():
                yield from self.entry(name, child, parts[str(name)], at, indent + _INDENT)
        elif parts and isinstance(node.value, list) and len(parts) == len(node.value):
            yield head
            for number, child in enumerate(node.value):
                above, beside = self.taken(child.place)
                yield from (f"{indent}{_INDENT}{comment}" for comment in above)
                first, *more = self.mapping(parts[number], child, (*at, number), indent + 2 * _INDENT)
                yield f"{indent}{_INDENT}- {first.strip()}{beside}"
                yield from more
        else:
            for place in _places(node):  # of what is written on a line now
                above, inside = self.taken(place)
                yield from (f"{indent}{comment}" for comment in filter(None, [*above, inside.strip()]))
            first, *more = _lines(key, node.plain())
            yield f"{indent}{first}{beside}"
            yield from (f"{indent}{line}" for line in more)

    def taken(self, place: Place | None) -> tuple[list[str], str]:
        """Returns the comments of a line, once; the comment at its end with the space in front of it."""
        above, beside = self.comments.pop((place.source, place.line), ([], "")) if place else ([], "")
        return above, f"  {beside}" if beside else ""


def _lines(key: Any, value: Any) -> list[str]:
    """Returns a key with a value as lines of YAML, on a single line where that is short."""
    lines = dump({key: value}, compact=isinstance(value, dict | list)).splitlines()
    return lines if max(map(len, lines)) <= _WIDTH else dump({key: value}).splitlines()


def _comments_of(path: Path, tree: Node) -> tuple[list[str], dict[tuple[str, int], tuple[list[str], str]], list[str]]:
    """Returns the header of a recipe, the comments of the keys of all its files, and those at its end."""
    lines: dict[str, set[int]] = {}
    for place in _places(tree):
        lines.setdefault(place.source, set()).add(place.line)
    comments: dict[tuple[str, int], tuple[list[str], str]] = {}
    header, end = [], []
    for source in {str(path), *lines} - {""}:
        above, last = [], 0
        is_own = source == str(path)
        for number, (content, comment) in enumerate(_split_lines(read_text(Path(source))), start=1):
            if not content:
                above += [comment] if comment else []
            elif not last:  # the comment in front of a file is about the file
                header, above, last = (above if is_own else header), [], number
                comments[source, number] = [], comment
            elif number in lines.get(source, ()):
                comments[source, number], above, last = (above, comment), [], number
            elif not content.startswith("extends"):  # inside of a value: goes above its key
                before, beside = comments.get((source, last), ([], ""))
                comments[source, last] = [*before, *above, *([comment] if comment else [])], beside
                above = []
        end += above if is_own else []
    return header, comments, end


def _places(node: Node) -> Iterator[Place]:
    for place in (node.key_place, node.place):
        if place and place.line:
            yield place
    children = node.value.values() if isinstance(node.value, dict) else node.value
    for child in children if isinstance(node.value, dict | list) else ():
        yield from _places(child)


def _split_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yields what each line of a YAML text says, without spaces around it, and its comment."""
    values = bytearray(len(text) + 1)  # where scalars are, in which `#` begins no comment
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken):
            begin, end = token.start_mark.index, token.end_mark.index
            values[begin:end] = b"x" * (end - begin)
    begin = 0
    for line in text.split("\n"):
        marks = (n for n, character in enumerate(line) if character == "#" and not values[begin + n])
        place = next((n for n in marks if n == 0 or line[n - 1].isspace()), len(line))
        yield line[:place].strip(), line[place:].strip()
        begin += len(line) + 1
