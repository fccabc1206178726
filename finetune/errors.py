"""Errors with advice.

A message has four parts: the rule, what was received, what exists or is nearest, what to do. Names are in backticks.
All problems of the same kind are reported at once, and at most five are shown. Names come from files of strangers:
`printable` shows what a terminal would obey.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

# What a terminal obeys instead of showing it: control characters of ASCII and Latin-1, separators of lines, characters
# without a width, and those that turn the direction of text around. Halves of surrogate pairs (bytes of file names that
# are not UTF-8) cannot be written at all. U+200C and U+200D stay: Persian and emoji are written with them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_IN_BACKTICKS = re.compile("`[^`]*`")


def printable(text: object) -> str:
    r"""Returns a name or another short text with its control characters written as Python writes them.

    >>> printable("\x1b[31mred\n"), printable("größe/核")
    ('\\x1b[31mred\\n', 'größe/核')
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], str(text))


def printable_lines(text: str) -> str:
    r"""Does the same for a text of several lines; line breaks inside of backticks belong to a name and are escaped.

    >>> print(printable_lines("weights:\n`a\nb`\r"))
    weights:
    `a\nb`\r
    """
    whole = _IN_BACKTICKS.sub(lambda match: printable(match[0]), text)
    return "\n".join(map(printable, whole.split("\n")))


class FinetuneError(Exception):
    """Base of every error the package raises on purpose; the command line prints its message alone."""

    exit_code = 2

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class RecipeError(FinetuneError, ValueError):
    """The recipe cannot be read or breaks a rule of the schema."""


class GroupError(FinetuneError, ValueError):
    """The layer groups do not partition the trainable variables, or a group's settings are wrong."""


class RestoreError(FinetuneError, ValueError):
    """The pretrained weights cannot be read or do not fit the model."""


class DataError(FinetuneError, ValueError):
    """The examples cannot be read or do not fit the model."""


class PartError(DataError):
    """A part of the rows that is named, such as a column or a feature, is missing or not what it is said to be.

    Attributes:
        part: Its name; empty where the message says all.
    """

    def __init__(self, message: str, part: str = "") -> None:
        super().__init__(message)
        self.part = part


class TrainingError(FinetuneError, RuntimeError):
    """Training began and failed; the input was fine."""

    exit_code = 1


class LockError(FinetuneError, RuntimeError):
    """Another run writes the folder; nothing in it is changed."""


class MachineError(FinetuneError, RuntimeError):
    """Memory, room on the disk, open files or processes have run out, or storage fails; the input may be fine."""

    exit_code = 1


class WriteError(FinetuneError, OSError):
    """A file cannot be written: the disk is full, or its folder is gone or another run's."""

    exit_code = 1


def quote(names: Iterable[object], *, limit: int = 5) -> str:
    """Lists names in backticks, `limit` at most.

    >>> quote(["a", "b", "c"], limit=2)
    '`a`, `b` and 1 more'
    """
    every = [f"`{printable(name)}`" for name in names]
    shown = ", ".join(every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def counted(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with the noun that belongs to it.

    Args:
        number: How many there are.
        singular: The noun.
        plural: The noun for any number but 1; by default the singular with an `s`.

    >>> counted(1, "epoch"), counted(1200, "epoch"), counted(1, "class", "classes")
    ('1 epoch', '1,200 epochs', '1 class')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Returns the known names that look most like a name.

    Args:
        name: What was written.
        known: The names that exist.
        limit: How many to return at most, >= 1.

    Returns:
        The nearest names, best first; empty when no name is close.
    """
    return difflib.get_close_matches(name, list(dict.fromkeys(known)), n=limit, cutoff=0.6)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Returns the sentence that offers the nearest known names, or an empty string.

    >>> did_you_mean("hed", ["stem", "head"])
    ' Did you mean `head`?'
    """
    close = nearest(name, known)
    return f" Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else ""


def as_list(text: str) -> str:
    """Returns the sentence that writes names between commas, as flags of a command line have them, as a list.

    >>> as_list("block_1,head")
    ' Names are written as a list: `[block_1, head]`.'
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    return f" Names are written as a list: `[{', '.join(names)}]`."


def reason(error: BaseException) -> str:
    """Returns what an exception says went wrong, on a single line without its full stop.

    Messages of TensorFlow and Keras fill a page: the call, the arguments, the nodes of the graph, the layer's config.

    >>> reason(ValueError("Exception encountered when calling Dense.call().\\n\\ntoo wide\\n\\nArguments received ..."))
    'too wide'
    """
    inner = str(error).rpartition("Exception encountered: ")[2]
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{function_node .*?\}\} ?| ?\[Op:.*| Full object config: .*", "", inner)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Compiled functions of TensorFlow begin with where the code was written, and end with what went wrong.
    lines = lines[::-1] if lines[:1] == ["Graph execution error:"] else lines
    explanation = (line for line in lines if not line.startswith(("[[{{", "Exception encountered when calling")))
    return next(explanation, "the error has no message")[:300].removeprefix("''").removesuffix("''").rstrip(". ")
