"""The connection of the workers of a run with their chief: they find each other, compare notes, and notice who is gone.

TensorFlow sums gradients over the workers, and says nothing else to a process about the others: it waits without end for
one that never starts, and one that ends takes the others down with a page of RPC errors. So each worker holds a plain
TCP connection to the chief for the time of the run. Over it go

- the greeting: the number of each worker, and a call back to its address, which shows that the address is right;
- `Channel.exchange`: a small value of each worker for all of them (hashes of recipes, a clock, a signal that came);
- a sign of life every few seconds, and the last words of a worker that fails.

A worker that is killed closes its connection at once, since its system does; a machine that vanishes falls silent.

The connection uses the port that the cluster names for TensorFlow, before TensorFlow does: then no other port has to be
open. Messages are lines of JSON. Whatever else connects to the port is turned away.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from finetune.distribution.cluster import Cluster, host_and_port
from finetune.errors import FinetuneError, TrainingError, counted, printable

_GREETING = "finetune workers 1"
_MOST_BYTES = 2**24  # of a message
_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Limits:
    """How long a worker waits for the others, in seconds.

    Attributes:
        start: Until all have started.
        answer: For a value of each, as long as all give signs of life.
        silence: Without a sign of life, after which a worker counts as gone.
    """

    start: float = 300.0
    answer: float = 1800.0
    silence: float = 60.0


class Channel:
    """The open connection of a worker with all others. Make it with `open_channel`.

    Attributes:
        cluster: The workers.
        lost: A sentence on the worker that is gone; empty while all are there.
        on_lost: Called with this sentence, from a thread.
    """

    def __init__(self, cluster: Cluster, peers: dict[int, "_Peer"], limits: Limits):
        self.cluster, self.limits = cluster, limits
        self.lost = ""
        self.on_lost: Callable[[str], None] = lambda sentence: None
        self._peers, self._closing = peers, False
        self._changed = threading.Condition()
        self._number = 0  # of the exchange
        self._values: dict[int, dict[int, Any]] = {}  # by exchange and worker, at the chief
        self._answers: dict[int, list[Any]] = {}  # by exchange, at the others
        for peer in peers.values():
            threading.Thread(target=self._read, args=(peer,), name=f"worker {peer.index}", daemon=True).start()
        threading.Thread(target=self._beat, name="signs of life", daemon=True).start()

    def exchange(self, value: Any, what: str) -> list[Any]:
        """Returns the values of all workers, in their order. Each of them must call it, the same number of times.

        Args:
            value: Of this worker: what JSON can hold.
            what: What it is about, for the message where a worker does not come.

        Raises:
            TrainingError: A worker is gone, or does not come in time.
        """
        self._number += 1
        number, index = self._number, self.cluster.index
        if not self.cluster.is_chief:
            self._peers[0].send({"number": number, "value": value})
            return self._wait(lambda: self._answers.pop(number, None), what, lambda: [0])
        with self._changed:
            self._values.setdefault(number, {})[index] = value
        missing = lambda: [peer for peer in self._peers if peer not in self._values[number]]  # noqa: E731
        self._wait(lambda: None if missing() else True, what, missing)
        values = [self._values[number][worker] for worker in range(self.cluster.workers)]
        del self._values[number]
        for peer in self._peers.values():
            peer.send({"number": number, "values": values})
        return values

    def check(self) -> None:
        """Raises the error that belongs to a worker that is gone.

        Raises:
            TrainingError: One is.
        """
        if self.lost:
            raise TrainingError(f"All workers of a run train together. {self.lost}")

    def close(self, failure: str = "") -> None:
        """Ends the connection.

        Args:
            failure: Why this worker ends, where that is no regular end: the others are told, and end, too.
        """
        self._closing = True
        for peer in self._peers.values():
            peer.send({"failed": failure} if failure else {"bye": True})
            peer.close()

    # -- Within -------------------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], Any], what: str, missing: Callable[[], list[int]]) -> Any:
        """Waits until `ready` returns something, and returns it."""
        # The chief, who knows which of the workers is late, says it first.
        end = time.monotonic() + self.limits.answer + (0 if self.cluster.is_chief else 10)
        with self._changed:
            while not self.lost:
                if (result := ready()) is not None:
                    return result
                if not self._changed.wait(timeout=max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    late = ", ".join(self.cluster.name(index) for index in missing())
                    waited = f"{self.limits.answer:g} seconds"
                    self._lose(f"This worker waited {waited} for {late} to come to this: {what}.")
        self.check()

    def _lose(self, sentence: str) -> None:
        """Notes that a worker is gone, once, and tells the others."""
        with self._changed:
            if self.lost or self._closing:
                return
            self.lost = sentence
            self._changed.notify_all()
        if self.cluster.is_chief:
            for peer in self._peers.values():
                peer.send({"lost": sentence})
        self.on_lost(sentence)

    def _read(self, peer: "_Peer") -> None:
        """Takes the messages of a peer, in a thread of its own."""
        name = self.cluster.name(peer.index)
        name = name[0].upper() + name[1:]
        for message in peer.messages():
            if "lost" in message:
                self._lose(str(message["lost"]))
            elif "failed" in message:
                self._lose(f"{name} failed: {message['failed']}")
            elif message.get("bye"):
                return
            elif "number" in message:
                with self._changed:
                    if "values" in message:
                        self._answers[message["number"]] = message["values"]
                    else:
                        self._values.setdefault(message["number"], {})[peer.index] = message["value"]
                    self._changed.notify_all()
        self._lose(f"{name} has ended without a word: it was killed, or its machine is gone.")

    def _beat(self) -> None:
        """Gives signs of life, and looks for those of the others."""
        while not self._closing:
            for peer in self._peers.values():
                peer.send({})
                silent = time.monotonic() - peer.heard
                if silent > self.limits.silence:
                    name = self.cluster.name(peer.index)
                    self._lose(f"{name[0].upper()}{name[1:]} has been silent for {silent:.0f} seconds.")
            time.sleep(min(2.0, self.limits.silence / 4))


@dataclass
class _Peer:
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
            _send(self.connection, message)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields what it sends until the connection ends."""
        with suppress(OSError, ValueError):
            with self.connection.makefile("rb") as lines:
                while (message := _line(lines)) is not None:
                    self.heard = time.monotonic()
                    yield message

    def close(self) -> None:
        """Ends the connection; what was sent arrives."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)


def open_channel(cluster: Cluster, limits: Limits | None = None) -> Channel:
    """Waits for all workers of a run, and connects them.

    Args:
        cluster: The workers, and which of them this process is.
        limits: How long to wait; by default as `Limits` says.

    Raises:
        FinetuneError: The port of this worker is taken; a worker did not start in time; or an address is that of
            another worker, or of another program. Each worker that has come gets the sentence.
    """
    limits = limits or Limits()
    key = secrets.token_hex(8)
    end = time.monotonic() + limits.start
    with _listening(cluster) as listener:
        peers = _gather(cluster, listener, end) if cluster.is_chief else _join(cluster, listener, key, end)
    for peer in peers.values():
        peer.connection.settimeout(None)
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.heard = time.monotonic()
    return Channel(cluster, peers, limits)


@contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    """Listens at the address of this worker; TensorFlow takes the port over afterwards."""
    host, port = host_and_port(cluster.addresses[cluster.index])
    for place in (host, ""):
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            # Behind a translated address, as in a container, a machine does not know its own: any address will do.
            if place and not isinstance(error, PermissionError) and error.errno != _IN_USE:
                continue
            raise FinetuneError(
                f"Each worker needs the port that {cluster.source} names for it. Port {port} of {cluster.name(cluster.index)} "
                f"cannot be used: {error.strerror}. End the process that holds it, perhaps an earlier run, or choose "
                "another port in every process."
            ) from error
        with listener:
            listener.settimeout(_RETRY_SECONDS)
            yield listener
        return


_IN_USE = 98 if os.name == "posix" else 10048


def _gather(cluster: Cluster, listener: socket.socket, end: float) -> dict[int, _Peer]:
    """Returns the connections of the chief, once every worker has greeted and was reached at its address."""
    peers: dict[int, _Peer] = {}
    greeted: dict[int, dict[str, Any]] = {}
    try:
        while len(peers) < cluster.workers - 1:
            missing = [index for index in range(1, cluster.workers) if index not in peers]
            if time.monotonic() > end:
                names = ", ".join(cluster.name(index) for index in missing[:5])
                more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
                raise FinetuneError(
                    f"A run of several workers begins when all {cluster.workers} have started. {names}{more} did not "
                    "come in time. Look into their logs, and whether they can reach the address of the chief."
                )
            if (greeting := _accept(listener)) is None:
                continue
            connection, message = greeting
            if message.get("failed"):
                raise FinetuneError(str(message["failed"]))
            problem = _wrong_greeting(cluster, message, greeted)
            if problem:
                with suppress(OSError):
                    _send(connection, {"refused": problem})
                raise FinetuneError(problem)
            index = int(message["index"])
            peers[index], greeted[index] = _Peer(index, connection), message
        for index in sorted(peers):
            _call_back(cluster, index, greeted[index]["key"])
    except FinetuneError as error:
        for peer in peers.values():
            peer.send({"refused": str(error)})
        raise
    for peer in peers.values():
        peer.send({"go": True})
    return peers


def _wrong_greeting(cluster: Cluster, message: dict[str, Any], greeted: dict[int, dict[str, Any]]) -> str:
    """Returns what is wrong with the greeting of a worker."""
    index, addresses = message.get("index"), message.get("addresses")
    where = f"process {message.get('process')} on `{printable(message.get('host'))}`"
    if addresses != list(cluster.addresses):
        return (
            f"All workers of a run are told of the same cluster. The chief was told of "
            f"{counted(cluster.workers, 'worker')}, {', '.join(cluster.addresses[:8])}; {where} of "
            f"{', '.join(map(printable, addresses[:8])) if isinstance(addresses, list) else 'another'}. Correct "
            f"`{cluster.source}` for every process."
        )
    if not isinstance(index, int) or not 0 < index < cluster.workers:
        return f"There is one process for each worker. {where} says that it is worker {index}, too. Correct its number."
    if index in greeted:
        other = greeted[index]
        return (
            f"There is one process for each worker. Two say that they are worker {index}: {where}, and process "
            f"{other.get('process')} on `{printable(other.get('host'))}`. Correct `task.index` of one of them."
        )
    return ""


def _call_back(cluster: Cluster, index: int, key: str) -> None:
    """Checks that a worker is reached at its address."""
    answer: dict[str, Any] = {}
    why = "another program answers there"
    try:
        with socket.create_connection(host_and_port(cluster.addresses[index]), timeout=10) as connection:
            connection.settimeout(10)
            _send(connection, {"greeting": _GREETING, "call_back": index})
            answer = _line(connection.makefile("rb")) or {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if answer.get("key") != key:
        why = f"worker {answer['index']} answers there" if answer.get("index") else why
        raise FinetuneError(
            f"TensorFlow reaches each worker at its address. {cluster.name(index)} has started, and is not reached at "
            f"it: {why}. Correct the address in `{cluster.source}`, or open the port."
        )


def _join(cluster: Cluster, listener: socket.socket, key: str, end: float) -> dict[int, _Peer]:
    """Returns the connection of a worker to the chief, once the chief says that all are there."""
    connection = _reach_chief(cluster, key, end)
    answers = threading.Event()
    not_the_chief = {
        "refused": "All workers of a run are told of the same cluster. A process takes the first of its addresses for "
        f"that of the chief, where {cluster.name(cluster.index)} answers. Correct `{cluster.source}` for every process."
    }

    def answer_calls() -> None:
        while not answers.is_set():
            if greeting := _accept(listener):
                with greeting[0] as caller, suppress(OSError):
                    _send(caller, not_the_chief if "addresses" in greeting[1] else {"index": cluster.index, "key": key})

    thread = threading.Thread(target=answer_calls, name="greetings", daemon=True)
    thread.start()
    try:
        connection.settimeout(max(1.0, end - time.monotonic()) + 30)  # the chief, which may have begun later, says it first
        message = _first_line(connection)
    except (OSError, ValueError):
        message = None
    finally:
        answers.set()
        thread.join()
    if message and message.get("go"):
        return {0: _Peer(0, connection)}
    if message and message.get("refused"):
        raise FinetuneError(str(message["refused"]))
    raise FinetuneError(
        f"All workers of a run start together. {cluster.name(0)} has ended, or fallen silent, before all were there. Look into "
        "its log."
    )


def _reach_chief(cluster: Cluster, key: str, end: float) -> socket.socket:
    """Connects to the chief, which may start later, and greets it."""
    address, why = host_and_port(cluster.addresses[0]), ""
    greeting = {
        "greeting": _GREETING,
        "index": cluster.index,
        "addresses": list(cluster.addresses),
        "key": key,
        "process": os.getpid(),
        "host": socket.gethostname(),
    }
    while time.monotonic() < end:
        try:
            connection = socket.create_connection(address, timeout=10)
            # A port of the local machine that nobody listens at may be connected with itself.
            if connection.getsockname() != connection.getpeername():
                _send(connection, greeting)
                return connection
            connection.close()
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(_RETRY_SECONDS)
    raise FinetuneError(
        f"The workers of a run begin when they have reached the chief. {cluster.name(0)} does not answer: {why}. Start it, "
        f"and compare the address in `{cluster.source}` with that of its machine."
    )


def _accept(listener: socket.socket) -> tuple[socket.socket, dict[str, Any]] | None:
    """Returns the next connection with its greeting; `None` where nobody comes now, or somebody who is no worker."""
    try:
        connection = listener.accept()[0]
    except OSError:
        return None
    try:
        connection.settimeout(5)
        message = _first_line(connection)
    except (OSError, ValueError):
        message = None
    if message is None or message.get("greeting") != _GREETING:
        connection.close()
        return None
    return connection, message


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _first_line(connection: socket.socket) -> dict[str, Any] | None:
    """Reads a message byte by byte: what follows it is for another reader."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < 2**20:
        part = connection.recv(1)
        if not part:
            return None
        line += part
    return _parsed(bytes(line))


def _line(lines: Any) -> dict[str, Any] | None:
    line = lines.readline(_MOST_BYTES)
    return _parsed(line) if line else None


def _parsed(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message is an object")
    return message
