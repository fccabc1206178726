"""A worker at the other end of a connection: messages are lines of JSON."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_MOST_BYTES = 2**24  # of a message
_FIRST_BYTES = 2**20  # of the first, which a stranger may send


@dataclass
class Peer:
    """A worker at the other end of a connection.

    Attributes:
        index: Its number.
        heard: When it was heard last, in seconds of the monotonic clock.
    """

    index: int
    connection: socket.socket
    heard: float = field(default_factory=time.monotonic)
    _sending: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; one that cannot be sent is lost, which the reading thread notices."""
        with suppress(OSError), self._sending:
            send(self.connection, message)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields what it sends until the connection ends."""
        with suppress(OSError, ValueError), self.connection.makefile("rb") as lines:
            while (message := line_of(lines)) is not None:
                self.heard = time.monotonic()
                yield message

    def close(self) -> None:
        """Ends the connection; what was sent arrives."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def first_line(connection: socket.socket) -> dict[str, Any] | None:
    """Reads a message byte by byte: what follows it is for another reader."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _FIRST_BYTES:
        part = connection.recv(1)
        if not part:
            return None
        line += part
    return _parsed(bytes(line))


def line_of(lines: Any) -> dict[str, Any] | None:
    """Returns the next message of a file of them; `None` at its end."""
    line = lines.readline(_MOST_BYTES)
    return _parsed(line) if line else None


def _parsed(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message is an object")
    return message
