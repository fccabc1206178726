"""Standard output that may fail: a log on a full disk, a reader that has gone, a terminal that was closed.

None of these may end a training that has taken days, nor take its last message with it.
"""

import errno
import os
import sys
from io import TextIOWrapper
from typing import TextIO


class LenientStream(TextIOWrapper):
    """A stream of text on which a failure to write is remembered, not raised. Later text is tried again.

    Attributes:
        failure: The latest failure, with which text was lost; `None` where there was none. A reader that closes its
            pipe (`| head`) is none.
        source: The stream whose buffer this one shares.
    """

    failure: OSError | None = None
    source: TextIO | None = None

    def write(self, text: str, /) -> int:
        """Writes text, or remembers why it cannot be written."""
        try:
            return super().write(text)
        except OSError as error:
            self._remember(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or remembers why it cannot be written."""
        try:
            super().flush()
        except OSError as error:
            self._remember(error)

    def _remember(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self.failure = error


def open_closed_streams() -> None:
    """Opens the null device for each of standard input, output and error that whoever started the process has closed.

    Else the next file that is opened takes the number of the stream, and messages of TensorFlow are written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def lenient(stream: TextIO) -> TextIO:
    """Returns a stream that writes where another does, escapes what the encoding lacks, and raises no `OSError`."""
    if not isinstance(stream, TextIOWrapper):  # another program has put an object of its own there, or there is none
        return stream
    made = LenientStream(
        stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering
    )
    made.source = stream  # a stream that nobody holds any longer closes its buffer
    return made
