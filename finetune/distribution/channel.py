"""The connection of the workers of a run with their chief: what they tell each other, and how they notice who is gone.

TensorFlow sums gradients over the workers, and says nothing else to a process about the others: it waits without end
for one that never starts, and one that ends takes the others down with a page of RPC errors. So each worker holds a
plain TCP connection to the chief for the time of the run. `greeting.py` makes it. Over it go

- `Channel.exchange`: a small value of each worker for all of them (hashes of recipes, a clock, a signal that came);
- a sign of life every few seconds, and the last words of a worker that fails.

A worker that is killed closes its connection at once, since its system does; a machine that vanishes falls silent.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.distribution.cluster import Cluster
from finetune.distribution.peer import Peer
from finetune.errors import TrainingError


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

    def __init__(self, cluster: Cluster, peers: dict[int, "Peer"], limits: Limits):
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
            raise self._error()

    def close(self, failure: str = "") -> None:
        """Ends the connection.

        Args:
            failure: Why this worker ends, where that is no regular end: the others are told, and end, too.
        """
        self._closing = True
        for peer in self._peers.values():
            peer.send({"failed": failure} if failure else {"bye": True})
            peer.close()

    def _error(self) -> TrainingError:
        return TrainingError(f"All workers of a run train together. {self.lost}")

    # -- Within -------------------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], Any], what: str, missing: Callable[[], list[int]]) -> Any:
        """Waits until `ready` returns something, and returns it."""
        # The chief, who knows which of the workers is late, says it first.
        end = time.monotonic() + self.limits.answer + (0 if self.cluster.is_chief else 10)
        with self._changed:
            while True:
                # First: what has come counts, though its sender may have ended since.
                if (result := ready()) is not None:
                    return result
                if self.lost:
                    break
                if not self._changed.wait(timeout=max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    late = ", ".join(self.cluster.name(index) for index in missing())
                    waited = f"{self.limits.answer:g} seconds"
                    self._lose(f"This worker waited {waited} for {late} to come to this: {what}.")
        raise self._error()

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

    def _read(self, peer: "Peer") -> None:
        """Takes the messages of a peer, in a thread of its own, until the connection ends."""
        with peer.connection:
            self._take_messages(peer)

    def _take_messages(self, peer: "Peer") -> None:
        name = self.cluster.name(peer.index, begins=True)
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
                    name = self.cluster.name(peer.index, begins=True)
                    self._lose(f"{name} has been silent for {silent:.0f} seconds.")
            time.sleep(min(2.0, self.limits.silence / 4))
