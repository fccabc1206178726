"""The start of a run of several workers: they find each other, before TensorFlow starts.

Each listens at its own address. The workers connect to the chief and say their number and the cluster they were told
of; the chief calls each back at its address, which shows that the address is right; then it lets all go on.

The connection uses the port that the cluster names for TensorFlow, before TensorFlow does: so no other port has to be
open. Whatever else connects to the port is turned away.
"""

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.cluster import Cluster, host_and_port
from finetune.distribution.peer import Peer, first_line, send
from finetune.errors import FinetuneError, counted, printable

_GREETING = "finetune workers 1"
_RETRY_SECONDS = 0.2


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
            if place and not isinstance(error, PermissionError) and error.errno != errno.EADDRINUSE:
                continue
            raise FinetuneError(
                f"Each worker needs the port that {cluster.source} names for it. Port {port} of "
                f"{cluster.name(cluster.index)} cannot be used: {error.strerror}. End the process that holds it, "
                "perhaps an earlier run, or choose another port in every process."
            ) from error
        with listener:
            listener.settimeout(_RETRY_SECONDS)
            yield listener
        return


def _gather(cluster: Cluster, listener: socket.socket, end: float) -> dict[int, Peer]:
    """Returns the connections of the chief, once every worker has greeted and was reached at its address."""
    peers: dict[int, Peer] = {}
    greeted: dict[int, dict[str, Any]] = {}
    try:
        while len(peers) < cluster.workers - 1:
            missing = [index for index in range(1, cluster.workers) if index not in peers]
            if time.monotonic() > end:
                names = ", ".join(cluster.name(index, begins=index == missing[0]) for index in missing[:5])
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
                with connection, suppress(OSError):
                    send(connection, {"refused": problem})
                raise FinetuneError(problem)
            index = int(message["index"])
            peers[index], greeted[index] = Peer(index, connection), message
        for index in sorted(peers):
            _call_back(cluster, index, greeted[index]["key"])
    except FinetuneError as error:
        for peer in peers.values():
            with peer.connection:
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
            send(connection, {"greeting": _GREETING, "call_back": index})
            answer = first_line(connection) or {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if answer.get("key") != key:
        why = f"worker {answer['index']} answers there" if answer.get("index") else why
        raise FinetuneError(
            "TensorFlow reaches each worker at its address. "
            f"{cluster.name(index, begins=True)} has started, and is not reached at it: {why}. "
            f"Correct the address in `{cluster.source}`, or open the port."
        )


def _join(cluster: Cluster, listener: socket.socket, key: str, end: float) -> dict[int, Peer]:
    """Returns the connection of a worker to the chief, once the chief says that all are there."""
    is_over = threading.Event()
    not_the_chief = {
        "refused": "All workers of a run are told of the same cluster. A process takes the first of its addresses for "
        f"that of the chief, where {cluster.name(cluster.index)} answers. Correct `{cluster.source}` for every process."
    }

    def answer_calls() -> None:
        while not is_over.is_set():
            if greeting := _accept(listener):
                is_worker = "addresses" in greeting[1]
                with greeting[0] as caller, suppress(OSError):
                    send(caller, not_the_chief if is_worker else {"index": cluster.index, "key": key})

    thread = threading.Thread(target=answer_calls, name="greetings", daemon=True)
    thread.start()
    try:
        connection = _reach_chief(cluster, key, end)
        # The chief, which may have begun later, says first that somebody is missing.
        connection.settimeout(max(1.0, end - time.monotonic()) + 30)
        with suppress(OSError, ValueError):
            message = first_line(connection) or {}
            if message.get("go"):
                return {0: Peer(0, connection)}
            connection.close()
            if message.get("refused"):
                raise FinetuneError(str(message["refused"]))
        connection.close()
    finally:
        is_over.set()
        thread.join()
    raise FinetuneError(
        f"All workers of a run start together. {cluster.name(0, begins=True)} has ended, or fallen silent, before all "
        "were there. Look into its log."
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
                send(connection, greeting)
                return connection
            connection.close()
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(_RETRY_SECONDS)
    raise FinetuneError(
        f"The workers of a run begin when they have reached the chief. {cluster.name(0, begins=True)} does not answer: "
        f"{why}. Start it, and compare the address in `{cluster.source}` with that of its machine."
    )


def _accept(listener: socket.socket) -> tuple[socket.socket, dict[str, Any]] | None:
    """Returns the next connection with its greeting; `None` where nobody comes now, or somebody who is no worker."""
    try:
        connection = listener.accept()[0]
    except OSError:
        return None
    try:
        connection.settimeout(5)
        message = first_line(connection)
    except (OSError, ValueError):
        message = None
    if message is None or message.get("greeting") != _GREETING:
        connection.close()
        return None
    return connection, message
