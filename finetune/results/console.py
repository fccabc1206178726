"""The console of the command line: Rich's, which shows control characters of names instead of passing them on."""

from typing import Any

from rich.console import Console
from rich.text import Text

from finetune.errors import printable_lines


class PlainConsole(Console):
    """Rich's console, except that text is never markup, and that control characters in it are escaped.

    What Rich adds itself (colours, the bar) is no text and is written as always. The cells of tables are escaped where
    the tables are made.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes the text of a string that is printed; Rich calls it."""
        return super().render_str(printable_lines(text), **options)


def plain_console(*, stderr: bool, width: int | None) -> PlainConsole:
    """Makes a console that prints text as it is.

    Args:
        stderr: Whether it writes to standard error.
        width: Width of tables in characters; `None` for that of the terminal.
    """
    return PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)
