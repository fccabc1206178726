"""`run.log`: what the console has shown, as plain text, in the run folder."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.control import Control


class RunLog:
    """Writes what a console prints into a file, too: without colours, without the bar, and also where it is quiet.

    Lines are kept until `open` says where the file is, since a run that fails before training leaves no folder. Where
    the file cannot be written the run goes on without it.

    Args:
        console: The console; what it prints between `attach` and the end of that block is logged.
    """

    def __init__(self, console: Console):
        self._console = console
        self._text: Any = io.StringIO()

    def open(self, path: Path, *, append: bool = False) -> None:
        """Writes the lines so far to a file, and those that come.

        Args:
            path: The file.
            append: Whether the lines of an earlier process stay in it.
        """
        before = self._text.getvalue()
        with suppress(OSError):
            file = path.open("a" if append else "w", encoding="utf-8", errors="backslashreplace", buffering=1)
            file.write(before)
            self._text = file

    def write(self, *objects: Any, **options: Any) -> None:
        """Writes what `console.print` would show of these objects."""
        if any(isinstance(item, Control) for item in objects):  # of the bar
            return
        rendered = io.StringIO()
        plain = type(self._console)(file=rendered, width=self._console.width, color_system=None, force_terminal=False)
        plain.soft_wrap = True
        plain.print(*objects, **{"highlight": False, "markup": False, "emoji": False, **options})
        with suppress(OSError, ValueError):
            self._text.write("".join(f"{line.rstrip()}\n" for line in rendered.getvalue().splitlines()))

    def close(self, error: BaseException | None = None) -> None:
        """Ends the log; what comes later is not written to it.

        Args:
            error: What ends the run, if something does.
        """
        if error:
            self.write(f"{type(error).__name__}: {error}")
        with suppress(OSError):
            self._text.close()

    @contextmanager
    def attach(self) -> Iterator["RunLog"]:
        """Logs what the console prints during the block, and the error that ends it."""
        shown = self._console.print

        def both(*objects: Any, **options: Any) -> None:
            shown(*objects, **options)
            self.write(*objects, **options)

        vars(self._console)["print"] = both
        try:
            yield self
        except BaseException as error:
            self.close(error)
            raise
        finally:
            del vars(self._console)["print"]
            self.close()
