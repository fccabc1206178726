"""YAML with positions: text to a tree of nodes that know where they were written, and plain data back to text.

Scalars are read as in YAML 1.2, unlike in PyYAML: `1e-4` is a number, and `yes` is text. Tags are not allowed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 40
MAX_NODES = 20_000
_SLICE_AT_END = re.compile(r"[\s\[](-?\d+:)\Z")  # `variables: 40:`, of which YAML makes a mapping inside a line
_MERGE = "tag:yaml.org,2002:merge"
# The scalars of YAML 1.2's core schema, in the order in which they are tried. PyYAML has those of YAML 1.1, where
# `no` is false, `4:12` is 252 in base 60, and `1e-4` without a dot is text. Octal and hexadecimal are left out.
_SCALARS: tuple[tuple[str, re.Pattern[str], Callable[[str], Any]], ...] = (
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), lambda text: None),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), lambda text: text[0] in "tT"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*\Z"), int),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        lambda text: float(re.sub(r"\.(?=[a-z])", "", text.lower())),
    ),
)


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Attributes:
        source: The file as the user named it, or the option, `--set train.epochs`.
        line: From 1; 0 for an option.
        column: From 1.
        folder: What relative paths written here are relative to.
    """

    source: str
    line: int = 0
    column: int = 0
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """Something wrong and where."""

    place: Place
    message: str


@dataclass(frozen=True)
class Node:
    """A mapping, list or scalar with its place.

    Attributes:
        value: Nodes by key, a list of nodes, or a plain scalar.
        place: Where the value starts.
        key_place: Where its key starts; `None` without a key.
        size: Number of nodes in it, aliases counted every time.
    """

    value: Any
    place: Place
    key_place: Place | None = None
    size: int = 1

    def plain(self) -> Any:
        """Returns the value as dictionaries and lists of Python."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def child(self, key: Any) -> "Node | None":
        """Returns the node below a key or an index, or `None`."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        inside = isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
        return self.value[key] if inside else None


def parse(text: str, at: Callable[[int, int], Place], problems: list[Problem]) -> Node | None:
    """Reads YAML text.

    Args:
        text: One YAML document.
        at: Makes a place from a line and a column, both from 1.
        problems: Errors that do not prevent reading on are appended here.

    Returns:
        The root; `None` if the text cannot be read to its end.
    """
    try:
        # Three kinds: PyYAML's parser has a mark, its reader only an offset in the text, and ours a `Problem`.
        return _Reader(text, at, problems).document()
    except yaml.MarkedYAMLError as error:
        # Marks count from 0, and editors count from 1.
        mark = error.problem_mark or error.context_mark
        place = at(mark.line + 1, mark.column + 1) if mark else at(1, 1)
        problems.append(Problem(place, _wording(error, text)))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = at(before.count("\n") + 1, error.position - before.rfind("\n"))
        problems.append(Problem(place, f"character `#x{error.character:04x}` is not allowed. Remove it."))
    except _UnreadableError as error:
        problems.append(error.problem)
    return None


def _wording(error: yaml.MarkedYAMLError, text: str) -> str:
    # PyYAML's own words are: found character '\t' that cannot start any token.
    if "'\\t'" in str(error.problem):
        return "not valid YAML: a tab. Indent with spaces."
    if "escape" in str(error.problem) or "hexadecimal" in str(error.problem):
        return "not valid YAML: in double quotes `\\` begins an escape. Write a path with `/`, or in single quotes."
    # By its index: YAML also counts lines at U+0085, U+2028 and `\r`.
    if (mark := error.problem_mark) and (slices := _SLICE_AT_END.search(text[: mark.index + 1])):
        return f'not valid YAML: a slice is text. Put it in quotes: `"{slices[1]}"`.'
    explanation = ", ".join(part for part in (error.context, error.problem) if part)
    return f"not valid YAML: {explanation}. Check the indentation, quotes and brackets."


class _UnreadableError(Exception):
    def __init__(self, place: Place, message: str):
        super().__init__(message)
        self.problem = Problem(place, message)


class _Reader:
    """Turns the events of PyYAML into nodes; its composer would recurse and expand aliases without limit."""

    def __init__(self, text: str, at: Callable[[int, int], Place], problems: list[Problem]):
        self.loader = yaml.SafeLoader(text)
        self.at = at
        self.problems = problems
        self.anchors: dict[str, Node] = {}
        self.read = 0  # nodes so far, finished or not

    def document(self) -> Node:
        self.event()
        if isinstance(self.event(), yaml.StreamEndEvent):
            raise _UnreadableError(self.at(1, 1), "empty. A recipe has at least `model`, `data`, `groups` and `train`.")
        root = self.node(self.event(), depth=0)
        self.event()  # the end of the document
        last = self.event()
        if not isinstance(last, yaml.StreamEndEvent):
            self.fail(self.place(last), "a second YAML document. Remove the `---` and what follows.")
        return root

    def event(self) -> Any:
        try:
            return self.loader.get_event()
        except (ValueError, OverflowError) as error:  # PyYAML lets them through, e.g. for "\UFFFFFFFF"
            mark = self.loader.get_mark()
            raise _UnreadableError(self.at(mark.line + 1, mark.column + 1), f"not valid YAML: {error}.") from None

    def place(self, event: Any) -> Place:
        return self.at(event.start_mark.line + 1, event.start_mark.column + 1)

    def fail(self, place: Place, message: str) -> None:
        self.problems.append(Problem(place, message))

    def node(self, event: Any, depth: int) -> Node:
        place = self.place(event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor, place)
        # This method calls itself for each level, so depth is bounded well below the recursion limit of Python.
        if depth > MAX_DEPTH:
            raise _UnreadableError(place, f"nested more than {MAX_DEPTH} levels deep. No recipe needs that.")
        # Before the whole is read: PyYAML takes 25 seconds for a mapping of 90,000 keys.
        self.read += 1
        if self.read > MAX_NODES:
            raise _UnreadableError(place, f"more than {MAX_NODES} values before this. No recipe needs that.")
        # A tag such as `!!python/object` is never constructed: it is only reported.
        if event.tag:
            self.fail(place, f"the tag `{event.tag}` is not allowed: a recipe is plain data. Remove it.")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event, place), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(place, depth)
        else:
            node = self.mapping(place, depth)
        # Aliases share nodes, so nine lines of nested lists of aliases ("billion laughs") parse at once, but would fill
        # the memory in `plain()`. Therefore `size` counts an alias as often as it is used.
        if node.size > MAX_NODES:
            raise _UnreadableError(place, f"more than {MAX_NODES} values, aliases counted. No recipe needs that.")
        # Only a finished node is kept under its anchor, so that no alias can lead into the node that contains it.
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, name: str, place: Place) -> Node:
        if name not in self.anchors:
            raise _UnreadableError(place, f"the alias `*{name}` has no finished anchor `&{name}` before it.")
        return self.anchors[name]

    def scalar(self, event: yaml.ScalarEvent, place: Place) -> Any:
        # A JSON escape such as "\ud83d" makes half a character, which cannot be written to a UTF-8 file.
        if re.search("[\ud800-\udfff]", event.value):
            self.fail(place, "half a surrogate pair, which is not a character. Remove it.")
        # Quoted and block scalars are text whatever they look like.
        if event.style:
            return event.value
        try:
            return read_scalar(event.value)
        except ValueError:
            # Python converts at most 4300 digits (sys.set_int_max_str_digits). Reading goes on with any number.
            self.fail(place, f"a number of {len(event.value)} digits is too long.")
            return 0

    def sequence(self, place: Place, depth: int) -> Node:
        nodes = []
        while not isinstance(event := self.event(), yaml.SequenceEndEvent):
            nodes.append(self.node(event, depth + 1))
        return Node(nodes, place, size=1 + sum(node.size for node in nodes))

    def mapping(self, place: Place, depth: int) -> Node:
        nodes: dict[Any, Node] = {}
        inherited: list[Node] = []
        while not isinstance(event := self.event(), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            node = replace(self.node(self.event(), depth + 1), key_place=key.place)
            # A quoted "<<" is an ordinary key.
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
                inherited += self.merge_sources(node)
            elif isinstance(key.value, dict | list):
                self.fail(key.place, "a key must be a name. Received a mapping or a list.")
            elif key.value in nodes:
                first = nodes[key.value].key_place
                self.fail(key.place, f"the key `{key.value}` was used before, at {first}. Keep one of the two.")
            else:
                nodes[key.value] = node
        for source in inherited:  # the keys beside `<<` win, then the first source
            nodes = {**source.value, **nodes}
        return Node(nodes, place, size=1 + sum(1 + node.size for node in nodes.values()))

    def merge_sources(self, node: Node) -> list[Node]:
        sources = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(source.value, dict) for source in sources):
            self.fail(node.place, "`<<` must be followed by a mapping or a list of mappings, e.g. `<<: *base`.")
            return []
        return sources


def read_scalar(text: str) -> Any:
    """Returns the value of an unquoted scalar.

    >>> [read_scalar(text) for text in ("1e-4", "true", "yes", "4:12", "~")]
    [0.0001, True, 'yes', '4:12', None]
    """
    return next((convert(text) for _, pattern, convert in _SCALARS if pattern.match(text)), text)


def _text(dumper: Any, data: str) -> yaml.ScalarNode:
    style = None if data.isprintable() else '"'  # the other styles lose line breaks such as U+0085
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `read_scalar` would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name for it
        None: [*((tag, pattern) for tag, pattern, _ in _SCALARS), (_MERGE, re.compile(r"<<\Z"))]
    }

    yaml_representers = {**yaml.SafeDumper.yaml_representers, str: _text}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(data: Any, *, compact: bool = False) -> str:
    """Writes plain data as YAML that `parse` reads back as it was; `compact` puts innermost collections on a line."""
    style = None if compact else False
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096, default_flow_style=style)
