"""Reads recipe files, and merges a recipe with the files that it extends."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import reduce
from glob import escape
from pathlib import Path

from finetune.errors import RecipeError, did_you_mean, quote
from finetune.recipe.text import Node, Place, Problem, parse
from finetune.recipe.yaml_tree import merged

MAX_BYTES = 1_000_000
MAX_EXTENDS = 20


def read_tree(path: Path, problems: list[Problem], keys: Collection[str]) -> Node | None:
    """Reads a recipe and merges it into what it extends.

    Args:
        path: The recipe.
        problems: Errors in the text are appended here.
        keys: The keys of a recipe. A file that is extended and has none of them is no recipe: nothing of what is in it
            is shown, since a recipe may come from anywhere and name any file.

    Returns:
        The tree without `extends`; `None` if a file cannot be read.

    Raises:
        RecipeError: The recipe itself is not a readable file.
    """
    return _Files(problems, keys).tree(path, read_text(path))


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file of a recipe's size.

    Raises:
        RecipeError: There is no such file, or it is not text.
    """
    try:
        if path.is_dir():
            raise RecipeError(f"A recipe is a file. Received the folder `{path}`.{_yaml_files_in(path)}")
        if not path.exists():
            raise RecipeError(f"The recipe `{path}` does not exist.{_nearest(path)}")
        if not path.is_file():
            raise RecipeError(f"A recipe is a file. Received `{path}`, which is a device or a pipe.")
        with path.open("rb") as file:
            # One byte more than allowed shows that a file is too large without reading all of it.
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"The recipe `{path}` cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(
            f"A recipe must not be larger than {MAX_BYTES:,} bytes. `{path}` is larger. Check that it is the "
            "right file."
        )
    try:
        # Editors on Windows may begin a file with a byte order mark, which `utf-8-sig` removes.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"`{path}` is not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}. Save it as UTF-8."
        raise RecipeError(message) from None


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder `{path.parent}`."
    # `finetune recipes NAME` writes to `recipes/`.
    below = sorted(file for file in path.parent.glob(f"*/{escape(path.name)}") if file.is_file())
    if below:
        return f" Did you mean `{below[0]}`?"
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    # A misspelt name is more likely than a wrong folder, so near names come first.
    return did_you_mean(path.name, names) or _yaml_files_in(path.parent)


def _yaml_files_in(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    return f" The folder `{folder}` holds {quote(names) if names else 'no `.yaml` file'}."


@dataclass
class _Files:
    problems: list[Problem]
    keys: Collection[str]
    trees: dict[Path, Node | None] = field(default_factory=dict)
    opened: list[Path] = field(default_factory=list)

    def tree(self, path: Path, text: str) -> Node | None:
        """Returns a file merged into what it extends; each file is read once, however often it is extended."""
        # Resolved, so that two spellings of a path and links to a file count as the same file.
        key = path.resolve()
        if key not in self.trees:
            # `opened` is the chain of files from the recipe to this one: a file in it twice extends itself.
            self.opened.append(key)
            self.trees[key] = self.over_its_bases(path, text)
            self.opened.pop()
        return self.trees[key]

    def over_its_bases(self, path: Path, text: str) -> Node | None:
        folder = path.parent.absolute()
        in_text: list[Problem] = []
        root = parse(text, lambda line, column: Place(str(path), line, column, folder), in_text)
        if len(self.opened) > 1 and not (root and isinstance(root.value, dict) and {*root.value} & {*self.keys}):
            place = in_text[0].place if root is None else Place(str(path), 1, 1)
            fault = "is not valid YAML here" if root is None else f"has none of the keys {quote(self.keys, limit=9)}"
            return self.fail(place, f"a recipe can extend recipes alone, and this file {fault}. Check `extends`.")
        self.problems += in_text
        # The problems are already reported; the files that this one extends are not read.
        if root is None:
            return None
        if not isinstance(root.value, dict):
            return self.fail(root.place, "a recipe must be a mapping with `model`, `data`, `groups` and `train`.")
        without = Node({key: node for key, node in root.value.items() if key != "extends"}, root.place)
        bases = [self.base(node, path) for node in self.extended(root.child("extends"))]
        readable = [base for base in bases if base]
        # Later bases win over earlier ones, and the file itself over all of them.
        return reduce(merged, [*readable, without]) if len(readable) == len(bases) else None

    def extended(self, node: Node | None) -> list[Node]:
        if node is None or node.value is None:
            return []
        return node.value if isinstance(node.value, list) else [node]

    def base(self, node: Node, path: Path) -> Node | None:
        if not isinstance(node.value, str) or not node.value:
            return self.fail(node.place, "`extends` must be a path or a list of paths, relative to this file.")
        base = path.parent / Path(node.value).expanduser()
        try:
            text, key = read_text(base), base.resolve()
        except RecipeError as error:
            return self.fail(node.place, f"`extends`: {error}")
        # This comes before `tree` is called: a circle would never end.
        if key in self.opened:
            circle = [*self.opened[self.opened.index(key) :], key]
            names = " -> ".join(f"`{file.name}`" for file in circle)
            return self.fail(node.place, f"`extends` forms a cycle: {names}. Remove one of them.")
        if len(self.opened) > MAX_EXTENDS:
            return self.fail(node.place, f"`extends` goes through more than {MAX_EXTENDS} files. Merge some of them.")
        return self.tree(base, text)

    def fail(self, place: Place, message: str) -> None:
        self.problems.append(Problem(place, message))
